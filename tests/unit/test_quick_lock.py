"""The lock that is no checkpoint while it is free."""

import pytest
import trio
import trio.testing

from fusefs.quick_lock import QuickLock

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


async def test_one_at_a_time_in_the_order_of_coming() -> None:
    lock, order, inside = QuickLock(), list[int](), 0

    async def work(number: int) -> None:
        nonlocal inside
        async with lock:
            inside += 1
            assert inside == 1
            await trio.lowlevel.checkpoint()
            order.append(number)
            inside -= 1

    async with trio.open_nursery() as nursery:
        await lock.acquire()
        for number in range(5):
            nursery.start_soon(work, number)
            await trio.testing.wait_all_tasks_blocked()
        assert order == []
        lock.release()
    assert order == [0, 1, 2, 3, 4]


async def test_who_gives_up_waiting_keeps_nobody_from_it() -> None:
    lock = QuickLock()
    await lock.acquire()
    with trio.move_on_after(0.01) as waiting:
        await lock.acquire()
    assert waiting.cancelled_caught
    lock.release()
    with trio.fail_after(1):
        async with lock:
            pass


async def test_who_was_given_it_as_the_time_ran_out_has_it() -> None:
    lock = QuickLock()
    await lock.acquire()
    had = False

    async def wait(scope: trio.CancelScope) -> None:
        nonlocal had
        with scope:
            await lock.acquire()
            had = True
            lock.release()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(wait, scope)
        await trio.testing.wait_all_tasks_blocked()
        lock.release()
        scope.cancel()
    assert had
    with trio.fail_after(1):
        await lock.acquire()


async def test_a_free_one_is_taken_without_a_turn_of_the_scheduler() -> None:
    lock, others = QuickLock(), 0

    async def other() -> None:
        nonlocal others
        others += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        async with lock:
            pass
        assert others == 0
