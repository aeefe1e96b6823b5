import asyncio
from typing import Any

from shortener.clicks.overdue import OverdueQueue
from shortener.clicks.resolver import Resolution
from shortener.clicks.waiting_hit import WaitingHit


def waiting(overdue_at: float) -> WaitingHit:
    hit: Any = None
    return WaitingHit(hit, asyncio.get_running_loop().create_future(), overdue_at)


async def test_hits_become_overdue_in_the_order_of_arrival() -> None:
    queue = OverdueQueue()
    first, second, third = waiting(1), waiting(2), waiting(3)
    for each in (first, second, third):
        queue.append(each)
    assert queue.next_at() == 1
    assert queue.pop_overdue(0.5) == []
    assert queue.pop_overdue(2) == [first, second]
    assert queue.next_at() == 3


async def test_hits_with_a_response_are_removed_from_the_queue_of_waiting_hits_and_never_become_overdue() -> None:
    queue = OverdueQueue()
    first, second = waiting(1), waiting(2)
    queue.append(first)
    queue.append(second)
    first.respond(Resolution(None))
    queue.discard_done()
    assert len(queue) == 1
    assert queue.next_at() == 2
    second.respond(Resolution(None))
    assert queue.pop_overdue(5) == []
    assert queue.next_at() is None


async def test_removing_overdue_hits_examines_only_the_hits_that_are_removed() -> None:
    class Counting(WaitingHit):
        looks = 0

        def __getattribute__(self, name: str) -> Any:
            if name == "overdue_at":
                Counting.looks += 1
            return super().__getattribute__(name)

    queue = OverdueQueue()
    hit: Any = None
    for number in range(10_000):
        queue.append(Counting(hit, asyncio.get_running_loop().create_future(), float(number)))
    assert len(queue.pop_overdue(2.0)) == 3
    assert Counting.looks <= 5


async def test_a_hit_is_marked_as_refused_before_its_503_response_is_sent() -> None:
    class Response:
        def __init__(self) -> None:
            self.was_marked = False

        def done(self) -> bool:
            return False

        def set_result(self, resolution: Resolution) -> None: ...

        def set_exception(self, error: Exception) -> None:
            self.was_marked = each.is_refused

    hit: Any = None
    response = Response()
    each = WaitingHit(hit, response, 0.0)
    each.refuse(RuntimeError("no link"))
    assert response.was_marked
    assert each.is_obsolete
