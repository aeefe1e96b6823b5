"""The names of the queues of deliveries, as the column `lane` of the table `deliveries` stores them.

A queue contains the deliveries of one tracker (`t<tracker id>`), or the callbacks of one application to one host
(`c<application id>/<host>`). The database sorts the names by bytes, as Python does.
"""

from __future__ import annotations

from collections.abc import Collection

from shortener.urls import UrlError, parse_destination

#: The names of all queues of trackers sort between the first two texts, and the names of all queues of callbacks between the
#: others.
TRACKER_QUEUES, CALLBACK_QUEUES = ("t", "u"), ("c", "d")
#: A text that sorts after the names of all queues.
END_OF_NAMES = TRACKER_QUEUES[1]
#: A text that sorts after every name of a host.
_AFTER_HOSTS = "~"


def tracker_queue(tracker_id: int) -> str:
    """Return the name of the queue of a tracker."""
    return f"t{tracker_id}"


def callback_queue(application_id: int, url: str) -> str:
    """Return the name of the queue for a callback URL. All callbacks of an application to the same host share a queue."""
    try:
        host = parse_destination(url).host
    except UrlError:
        host = ""
    return f"c{application_id}/{host}"


def is_callback(queue: str) -> bool:
    """Return whether a queue contains callbacks."""
    return queue.startswith("c")


def tracker_of(queue: str) -> int | None:
    """Return the id of the tracker whose deliveries a queue contains; None for a queue of callbacks."""
    return None if is_callback(queue) else int(queue[1:])


def application_of(queue: str) -> int | None:
    """Return the id of the application whose callbacks a queue contains. Return None for a name without this id: older releases
    stored such names."""
    application, slash, _ = queue[1:].partition("/")
    return int(application) if slash and application.isdecimal() else None


def callback_ranges(without: Collection[int | None]) -> list[tuple[str, str]]:
    """Return ranges of names that contain the callback queues of all applications, except the applications in `without`."""
    ranges = []
    begin, end = CALLBACK_QUEUES
    for prefix in sorted(f"c{application}/" for application in without if application is not None):
        ranges.append((begin, prefix))
        begin = prefix + _AFTER_HOSTS
    return [*ranges, (begin, end)]
