import pytest

from shortener.delivery.queue_names import END_OF_NAMES, application_of, callback_queue, callback_ranges, tracker_of, tracker_queue


def test_the_name_of_a_queue_identifies_its_tracker_or_its_application() -> None:
    tracker, callbacks = tracker_queue(17), callback_queue(4, "https://receiver.example:8443/clicks?id=1")
    assert (tracker, callbacks) == ("t17", "c4/receiver.example")
    assert (tracker_of(tracker), tracker_of(callbacks), application_of(callbacks)) == (17, None, 4)
    assert max(tracker, callbacks) < END_OF_NAMES


@pytest.mark.parametrize("name", ["creceiver.example", "c/receiver.example", "cx/receiver.example"])
def test_a_callback_queue_of_an_older_release_has_no_application(name: str) -> None:
    assert application_of(name) is None


def test_the_ranges_of_callback_queues_leave_out_applications() -> None:
    ranges = callback_ranges(without={4, 31, None})
    names = [callback_queue(application, "https://receiver.example/") for application in (3, 4, 30, 31, 310)]
    found = [name for name in names for begin, end in ranges if begin < name < end]
    assert found == [name for name in names if application_of(name) in (3, 30, 310)]
