"""What `dcs status` says of scrubs and disks."""

from __future__ import annotations

from typing import Any

from servers.admin.alarms import disk_states, disk_troubles, duration, replicas_in_words, scrub_age, scrubbed

NOW = 1_000_000.0
GOOD = {"path": "/d1", "state": "good", "errors": 0, "set_aside": 0, "scrubbed_s": NOW - 7200, "scrub_late": False}


def node(number: int = 1, *disks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": number, "state": "alive", "in_doubt": False, "disks": list(disks), **more}


def test_a_late_scrub_is_loud() -> None:
    late = {**GOOD, "path": "/d2", "scrubbed_s": NOW - 12 * 86400, "scrub_late": True}
    assert scrub_age([node(1, GOOD)], NOW) == "every disk read completely within the last 2 h"
    assert scrub_age([node(1, GOOD), node(2, late)], NOW) == "LATE on /d2 of node 2: the oldest is 12 days ago"
    assert scrub_age([node(1), node(2, late, state="dead")], NOW) == "no node tells of one"


def test_each_trouble_has_its_line() -> None:
    assert disk_troubles([node(1, GOOD)]) == []
    failed = {**GOOD, "state": "failed", "errors": 2, "set_aside": 3}
    assert disk_troubles([node(4, failed, {**GOOD, "errors": 1}, in_doubt=True)]) == [
        "/d1 of node 4 is FAILED after 2 errors",
        "/d1 of node 4 keeps 3 damaged replicas aside",
        "/d1 of node 4 gave 1 errors",
        "node 4 may have lost replicas and is being asked",
    ]


def test_the_oldest_scrub_of_a_node_is_told() -> None:
    assert scrubbed([], NOW) == "-"
    assert scrubbed([GOOD, {**GOOD, "scrubbed_s": NOW - 60}], NOW) == "2 h"
    assert scrubbed([{**GOOD, "scrubbed_s": NOW - 12 * 86400, "scrub_late": True}], NOW) == "12 days, LATE"


def test_durations_have_one_unit() -> None:
    assert [duration(s) for s in (-3, 90, 720, 108_000, 777_600)] == ["0 s", "90 s", "12 min", "30 h", "9 days"]


def test_disks_are_counted_with_the_bad_ones() -> None:
    assert disk_states([GOOD, GOOD]) == "2"
    assert (
        disk_states([GOOD, {**GOOD, "state": "failed"}, {**GOOD, "state": "read-only"}]) == "3, 1 failed, 1 read-only"
    )


def test_replicas_that_are_no_copies_are_counted_apart() -> None:
    good = {"state": "good", "replicas": 80, "set_aside": 2}
    failed = {"state": "failed", "replicas": 40, "set_aside": 0}
    assert replicas_in_words([]) == "0"
    assert replicas_in_words([good | {"set_aside": 0}]) == "80"
    assert replicas_in_words([good, failed]) == "80, 40 on failed disks, 2 set aside"
