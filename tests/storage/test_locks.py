from shortener.storage.locks import AdvisoryLock


def test_the_advisory_locks_of_postgresql_have_different_numbers() -> None:
    assert len({lock.value for lock in AdvisoryLock}) == len(AdvisoryLock.__members__)
