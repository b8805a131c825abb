"""The network splits: the primary of Redis, a naming server and a mount on one side, all else on the other."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.caller import Called, Caller
from tests.support.cluster import Mount
from tests.support.fault_table import note_stall
from tests.support.load import Load, wait_steps
from tests.support.manifest import Manifest
from tests.support.ops import Ops
from tests.support.processes import wait_for
from tests.support.redis_ha import RedisServer
from tests.support.wire import SplitCluster, Wire
from tests.support.writing_program import WritingProgram

pytestmark = [pytest.mark.long, pytest.mark.timeout(300), pytest.mark.fault("M8")]

STALL_SECONDS_MAX = 15.0
CALL_SECONDS_MAX = 30.0
STALE_SECONDS_MAX = 7.5
"""5 s are allowed, and are taken; the rest is what a busy machine adds."""
SLACK_SECONDS = 5.0
"""For a machine with two cores and much to do."""
LEASE_SECONDS = 120
"""The mount that is cut off is to have its session still when it is back: its loss is another fault."""
PROMISES_MIN = 5
LAG_SECONDS_MAX = 10.0
"""`min-replicas-max-lag`: so long the primary takes changes after its replicas were heard last."""


@pytest.fixture(scope="module")
def split(wire: Wire) -> Iterator[SplitCluster]:
    """At the end nothing is missing, and nothing is left that no file shows."""
    with SplitCluster(wire, SESSION_LEASE_SECONDS=str(LEASE_SECONDS)) as cluster:
        yield cluster
        for mount in cluster.mounts:
            mount.unmount()
        cluster.wait_clean()


@pytest.fixture(scope="module")
def isolated(split: SplitCluster, wire: Wire) -> Mount:
    return split.mount("isolated", through=wire.enter)


@pytest.fixture(scope="module")
def other(split: SplitCluster) -> Mount:
    return split.mount("other")


def last_answer(caller: Caller, directory: Path) -> float:
    """When the last look for a name was answered; each is for another, so that nobody knows it without asking."""
    answered, number = time.monotonic(), 0
    while True:
        number += 1
        looked = caller.call("stat", directory / f"nothing-{number}")
        if looked.errno != errno.ENOENT:
            assert_failed_in_time(looked)
            return answered
        answered = time.monotonic()


def assert_failed_in_time(called: Called) -> None:
    assert called.errno == errno.EIO
    assert called.seconds < CALL_SECONDS_MAX + SLACK_SECONDS


def names_in_top(server: RedisServer) -> str:
    """By its own word, whoever it may still be."""
    return server.ask("HKEYS", "dcs:{main}:d:1")


def test_a_side_that_is_cut_off_acknowledges_nothing_that_the_other_does_not_have(
    split: SplitCluster, wire: Wire, isolated: Mount, other: Mount
) -> None:
    """There: errors in time, and soon no answers at all. Here: a stall. Together again: what was promised on either
    side, once, and nothing of what was refused."""
    redis = split.redises
    before = redis.primary()
    assert before is redis.servers[0], "the primary is on the side that will be cut off"
    here, there = other.path, isolated.path
    for name in ("promises", "early", "late"):
        (there / name).mkdir()
    manifest = split.directory / "promises"
    load = Load(here / "load")
    with (
        Ops(f"http://{split.addresses[1]}", split.secret) as on_this_side,
        Ops(f"http://{split.addresses[0]}", split.secret) as on_that_side,
        Caller() as early, Caller() as late, Caller() as looker, ThreadPoolExecutor(1) as beside,
        WritingProgram(there / "promises", manifest, seed=1) as program,
    ):  # fmt: skip
        with wire.crossed():
            on_that_side.open_session()
        on_this_side.open_session()
        for _ in range(3 * PROMISES_MIN):  # A promise is two lines, and what was tried before it counts as going on.
            program.must_go_on()
        with load, wire.cut_all() as rules:
            cut_at = time.monotonic()
            early.begin("mkdir", there / "early" / "refused")
            answered_at = beside.submit(last_answer, looker, there)
            change = on_that_side.mkdir(b"contested")
            with wire.crossed():  # Nobody has noticed yet: done by the old primary, and not to be relied on.
                assert on_that_side.batch([change], deadline_ms=5000) == [None], "neither success nor failure"
            assert "contested" in names_in_top(before)
            with wire.crossed():
                assert on_that_side.batch([on_that_side.read("lookup", parent=1, name=b"x")], 2000) == [None]
            wait_for(
                lambda: time.monotonic() - cut_at > LAG_SECONDS_MAX + SLACK_SECONDS, "no replica was heard for long"
            )
            late.begin("mkdir", there / "late" / "refused")
            assert redis.primary() is not before
            wait_steps(load, 100)
            assert [r and r[0] for r in on_this_side.batch([on_this_side.mkdir(b"contested")])] == [0]
            for caller in (early, late):
                assert_failed_in_time(caller.end())
            assert program.errno() == errno.EIO
            stale_seconds = answered_at.result(CALL_SECONDS_MAX) - cut_at
            print(f"the last answer {stale_seconds:.1f} s after the cut")
            assert stale_seconds < STALE_SECONDS_MAX
            assert before.is_primary, "it still holds itself for one"
        assert rules.packets > 0
        note_stall(load.longest_seconds)
        assert load.longest_seconds < STALL_SECONDS_MAX
        redis.mend()
        wait_for(lambda: b"load" in on_that_side.names(), "its naming server has found the primary")
        assert [r and r[0] for r in on_that_side.batch([change])] == [errno.EEXIST], "asked again by the same number"
    for name in ("early", "late"):
        wait_for(lambda: makes(there / name / "taken"), "the mount that was cut off works again")  # noqa: B023
        assert {path.name for path in (here / name).iterdir()} == {"taken"}
    isolated.remount()
    other.remount()
    load.check(there / "load")
    promised = Manifest()
    promised.read(manifest)
    assert promised.promised >= PROMISES_MIN
    promised.check(here / "promises", promised.names)
    assert not split.status()["safe_mode"]


def makes(directory: Path) -> bool:
    try:
        directory.mkdir()
    except FileExistsError:
        return True
    except OSError:
        return False
    return True
