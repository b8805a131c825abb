"""Which nodes the mount would rather ask, decided from values and times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fusefs.chunks.replicas import EJECTED_AGAIN_SECONDS, EJECTED_SECONDS, FULL_SECONDS, TRIAL_SECONDS, Replicas
from servers.protocol.ids import NodeNumber
from servers.protocol.placement import NodeView

ONE, TWO, THREE = NodeNumber(1), NodeNumber(2), NodeNumber(3)
NUMBERS = (ONE, TWO, THREE)


def node(number: int, **fields: Any) -> NodeView:
    view = NodeView(NodeNumber(number), f"uuid-{number}", f"h:{number}", "alive", 1000, 0, 1000, f"fs-{number}")
    return replace(view, **fields)


@pytest.fixture
def replicas() -> Replicas:
    replicas = Replicas()
    replicas.update(node(n) for n in NUMBERS)
    return replicas


def order(replicas: Replicas, now: float) -> list[int]:
    return [view.number for view in replicas.order_for_reading(NUMBERS, now)]


def able(replicas: Replicas, now: float, length: int = 1) -> list[int]:
    return [view.number for view in replicas.candidates_for_writing(length, now)]


def others(replicas: Replicas, now: float, length: int = 1) -> list[int]:
    return [view.number for view in replicas.last_resorts_for_writing(length, now)]


def test_the_faster_node_is_read_first(replicas: Replicas) -> None:
    for number, seconds in ((ONE, 0.3), (TWO, 0.1), (THREE, 0.2)):
        replicas.measured(number, seconds, now=100)
    assert order(replicas, 100) == [2, 3, 1]


def test_a_slow_node_gets_another_chance_when_its_measurement_is_old(replicas: Replicas) -> None:
    replicas.measured(ONE, 0.5, now=100)
    assert order(replicas, 100)[-1] == 1
    for now in range(101, 200):
        replicas.measured(TWO, 0.01, now)
        replicas.measured(THREE, 0.01, now)
    assert order(replicas, 199)[0] == 1


def test_a_silent_node_is_read_last_until_it_is_heard(replicas: Replicas) -> None:
    """However long ago that was, and whatever it takes from writers; that a node refuses costs less time."""
    replicas.silent(ONE)
    replicas.failed(TWO, now=100)
    replicas.answered(ONE)
    assert order(replicas, 101) == [3, 2, 1]
    assert order(replicas, 10_000)[-1] == 1
    assert able(replicas, 101) == [1, 3], "it may well be written to"
    assert replicas.statistics(101)["ejected"] == 2
    replicas.heard(ONE)
    assert order(replicas, 101) == [1, 3, 2]


def test_silent_nodes_are_read_all_the_same_and_a_new_address_is_another_chance(replicas: Replicas) -> None:
    for number in NUMBERS:
        replicas.silent(number)
    replicas.measured(ONE, 0.3, now=100)
    assert order(replicas, 100) == [2, 3, 1]
    replicas.update([node(1, address="elsewhere:1"), node(2)])
    assert [replicas.is_silent(number) for number in NUMBERS] == [False, True, False]


def test_only_known_nodes_are_asked(replicas: Replicas) -> None:
    assert [view.number for view in replicas.order_for_reading([NodeNumber(9), TWO], 0)] == [2]


def test_a_node_that_failed_is_the_last_resort_for_ten_seconds_then_for_sixty(replicas: Replicas) -> None:
    replicas.failed(ONE, now=100)
    almost, after = 100 + EJECTED_SECONDS - 0.1, 100 + EJECTED_SECONDS + 0.1
    assert order(replicas, almost) == [2, 3, 1]
    assert (able(replicas, almost), others(replicas, almost)) == ([2, 3], [1])
    assert able(replicas, after) == [1, 2, 3]
    replicas.failed(ONE, after)
    assert able(replicas, after + EJECTED_AGAIN_SECONDS - 0.1) == [2, 3]
    assert able(replicas, after + EJECTED_AGAIN_SECONDS + 0.1) == [1, 2, 3]


def test_an_ejected_node_has_its_turn_for_a_trial_now_and_then(replicas: Replicas) -> None:
    """Not one that the naming server does not call alive, nor one that is full."""
    replicas.update([node(1), node(2, state="suspect"), node(3)])
    for number in (ONE, TWO, THREE):
        replicas.failed(number, now=100)
    replicas.full(THREE, now=100)
    assert [view.number for view in replicas.take_trials(3, 1, 101)] == [1]
    assert replicas.take_trials(3, 1, 101 + TRIAL_SECONDS - 0.1) == []
    assert [view.number for view in replicas.take_trials(3, 1, 101 + TRIAL_SECONDS)] == [1]
    replicas.answered(ONE)
    assert replicas.take_trials(3, 1, 110) == []


def test_who_is_in_need_waits_for_no_turn_and_tries_no_node_twice(replicas: Replicas) -> None:
    for number in NUMBERS:
        replicas.failed(number, now=100)
    assert [view.number for view in replicas.take_trials(1, 1, 101)] == [1]
    found = replicas.take_trials(2, 1, 101.5, without={TWO}, in_need=True)
    assert [view.number for view in found] == [3, 1], "whose last trial was longest ago comes first"
    assert replicas.take_trials(3, 1, 102, without=set(NUMBERS), in_need=True) == []
    replicas.answered(ONE)
    assert [view.number for view in replicas.take_trials(3, 1, 102, in_need=True)] == [2, 3], "a trusted one needs none"
    replicas.update([node(1, state="suspect"), node(2, state="dead"), node(3, state="suspect", draining=True)])
    assert [view.number for view in replicas.take_trials(3, 1, 103, in_need=True)] == [1]


def test_requests_that_fail_together_are_one_failure(replicas: Replicas) -> None:
    for _ in range(8):
        replicas.failed(ONE, now=100)
    assert able(replicas, 100 + EJECTED_SECONDS + 0.1) == [1, 2, 3]


def test_success_clears_failures(replicas: Replicas) -> None:
    replicas.failed(ONE, now=100)
    replicas.answered(ONE)
    assert able(replicas, 100) == [1, 2, 3]
    replicas.failed(ONE, now=200)
    assert able(replicas, 200 + EJECTED_SECONDS + 0.1) == [1, 2, 3]


@pytest.mark.parametrize("before", [{"state": "dead"}, {"state": "suspect"}, {"address": "elsewhere:1"}])
def test_a_node_that_came_back_is_trusted_at_once(replicas: Replicas, before: dict[str, Any]) -> None:
    replicas.update([node(1, **before), node(2), node(3)])
    replicas.failed(ONE, now=100)
    replicas.update(node(n) for n in NUMBERS)
    assert able(replicas, 100) == [1, 2, 3]


def test_a_node_that_stays_alive_stays_ejected(replicas: Replicas) -> None:
    """The naming server may reach what this mount cannot."""
    replicas.failed(ONE, now=100)
    replicas.update(node(n) for n in NUMBERS)
    assert able(replicas, 101) == [2, 3]


def test_reading_prefers_alive_to_suspect_to_ejected_to_dead(replicas: Replicas) -> None:
    replicas.update([node(1, state="dead"), node(2, state="suspect"), node(3), node(4)])
    replicas.failed(NodeNumber(4), now=100)
    numbers = [NodeNumber(n) for n in (1, 2, 4, 3)]
    assert [view.number for view in replicas.order_for_reading(numbers, 100)] == [3, 2, 4, 1]


def test_a_full_node_is_not_written_to_for_a_while_but_read(replicas: Replicas) -> None:
    replicas.full(ONE, now=100)
    assert (able(replicas, 101), others(replicas, 101)) == ([2, 3], [1])
    assert able(replicas, 101 + FULL_SECONDS) == [1, 2, 3]
    assert order(replicas, 101)[0] == 1


def test_a_node_without_room_for_it_is_a_last_resort(replicas: Replicas) -> None:
    replicas.update([node(1, free_bytes=10), node(2), node(3, state="dead")])
    assert (able(replicas, 0, length=11), others(replicas, 0, length=11)) == ([2], [1, 3])


def test_statistics_count_what_is_there(replicas: Replicas) -> None:
    replicas.update([node(1), node(2, state="dead"), node(3)])
    replicas.failed(ONE, now=100)
    assert replicas.statistics(101) == {"nodes": 3, "alive": 2, "ejected": 1}
    assert replicas.reachable_count() == 2
