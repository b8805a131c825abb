"""What waits for repair when there is not room for all of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from servers.naming.background.backlog import Backlog
from servers.naming.background.repair_plan import Held
from servers.protocol.ids import ExtentId, NodeNumber

ROOM = 4


def held(number: int) -> Held:
    return Held(ExtentId(number.to_bytes(16, "big")), (NodeNumber(1),), 100, 3)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=60))
def test_the_most_endangered_are_always_there(puts: list[tuple[int, int]]) -> None:
    """As a list of everything would have it, of which all but the first few are forgotten."""
    backlog, wanted = Backlog(ROOM), dict[int, int]()
    for number, good in puts:
        wanted.pop(number, None)
        crowded_out = backlog.put(held(number), good)
        wanted[number] = good
        assert (crowded_out is None) == (len(wanted) <= ROOM)
        if crowded_out is not None:
            gone = int.from_bytes(crowded_out.extent, "big")
            assert wanted.pop(gone) >= max(wanted.values())
        assert [backlog.get(held(n).extent) is not None for n in range(10)] == [n in wanted for n in range(10)]
        assert [wanted[int.from_bytes(h.extent, "big")] for h in backlog] == sorted(wanted.values())
        assert len(backlog) == len(wanted)


def test_what_is_put_again_is_there_once_and_is_the_last_to_be_looked_at() -> None:
    backlog = Backlog(ROOM)
    for number, good in ((1, 2), (2, 0), (3, 2), (1, 1)):
        backlog.put(held(number), good)
    assert backlog.longest_here(9) == [held(2), held(3), held(1)]
    assert list(backlog) == [held(2), held(1), held(3)]
    assert backlog.pop(held(1).extent) == held(1)
    assert backlog.pop(held(1).extent) is None
    assert backlog.drain() == [held(2), held(3)]
    assert len(backlog) == 0
