"""Fixtures of all suites: clusters of real processes, which leave nothing behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest
from _pytest.terminal import TerminalReporter

from tests.support.cluster import LIVING, Cluster
from tests.support.fault_table import ROWS, Shown, table, take_stall

KILL_SECONDS_BEFORE = 15.0


class MakeCluster(Protocol):
    def __call__(self, nodes: int = 3, **settings: str) -> Cluster: ...


def pytest_configure() -> None:
    """A run that is ended by SIGTERM takes its processes and mounts down, as with Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Which faults the test was about, and the longest stall, go along with its result."""
    report = yield
    rows = tuple(row for mark in item.iter_markers("fault") for row in mark.args)
    if call.when == "call" and rows:
        assert ROWS.keys() >= set(rows), f"{item.nodeid}: there is no such row among {rows}"
        report.user_properties += [("fault_rows", rows), ("stall_seconds", take_stall())]
    return report


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """The table of faults."""
    shown = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            known = dict(getattr(report, "user_properties", ()))
            if "fault_rows" in known:
                rows, test = tuple(known["fault_rows"]), report.nodeid.rpartition("::")[2]
                shown.append(Shown(rows, test, outcome == "passed", report.duration, known["stall_seconds"]))
    if shown:
        terminalreporter.section("faults")
        for line in table(shown):
            terminalreporter.write_line(line)


def _kill_all_mounts() -> None:
    for cluster in list(LIVING):
        cluster.kill_mounts()


@pytest.fixture(autouse=True)
def no_system_call_hangs_for_ever(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kills the mounts shortly before the test's time is over.

    A program that waits for a mount cannot be interrupted: a hang would hang the whole run.
    """
    marker = request.node.get_closest_marker("timeout")
    seconds = marker.args[0] if marker and marker.args else float(request.config.getini("timeout"))
    watchdog = threading.Timer(max(1.0, seconds - KILL_SECONDS_BEFORE), _kill_all_mounts)
    watchdog.daemon = True
    watchdog.start()
    yield
    watchdog.cancel()


@pytest.fixture
def make_cluster() -> Iterator[MakeCluster]:
    """Clusters as the test wants them; gone after the test."""
    with ExitStack() as clusters:

        def make(nodes: int = 3, **settings: str) -> Cluster:
            return clusters.enter_context(Cluster(nodes, **settings))

        yield make


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of three nodes for one test to do with as it likes."""
    with Cluster() as made:
        yield made


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    """A cluster of three nodes that the tests of a module share and leave healthy."""
    with Cluster() as made:
        yield made
