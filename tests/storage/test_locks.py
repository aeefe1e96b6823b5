from shortener.storage.locks import AdvisoryLock


def test_advisory_locks_have_different_numbers() -> None:
    assert len({lock.value for lock in AdvisoryLock}) == len(AdvisoryLock.__members__)
