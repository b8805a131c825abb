"""A Docker engine for this suite, and one stack that its tests share; both are gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.compose_stack import Stack
from tests.support.docker_engine import Engine, NoEngine, an_engine

_left_out: list[str] = []


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    try:
        with an_engine() as found:
            yield found
    except NoEngine as error:
        _left_out[:] = [str(error)]
        pytest.skip(f"the containers are NOT tested: {error}")


@pytest.fixture(scope="session")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Images built, nothing started."""
    with Stack(engine, tmp_path_factory.mktemp("stack")) as made:
        yield made


@pytest.fixture
def running(stack: Stack) -> Stack:
    """All of it is up and the mount works."""
    stack.up()
    return stack


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for why in _left_out:
        terminalreporter.section("THE CONTAINERS WERE NOT TESTED", sep="!", red=True, bold=True)
        terminalreporter.line(why)


@pytest.fixture
def peer(running: Stack) -> Iterator[str]:
    """A container of somebody else's that sees the mount."""
    name = f"{running.project}-peer"
    seen: Path = running.shared
    running.engine.docker(
        "run", "--detach", "--name", name, "--network", "none", "--init", "--volume", f"{seen}:/mnt:rslave",
        running.images[1], "sleep", "infinity",
    )  # fmt: skip
    yield name
    running.engine.docker("rm", "--force", name)
