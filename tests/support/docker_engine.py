"""A Docker engine with Compose v2 and the official base images: what is here, or what the kit can bring.

The kit is a directory with `start-engine` and `make-base-images`: ../shared/docker beside the checkout, or what
DCS_DOCKER_KIT names. It runs an engine out of Debian's packages in DCS_DOCKER_DIR (~/.cache/docker-engine), and makes
stand-ins for python:3.11-slim and redis:7 where there is no registry to pull them from. An engine that was started is
stopped again; its images stay, so that the next time is quicker.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import run
from tests.support.processes import CHECKOUT

BASE_IMAGES = ("python:3.11-slim", "redis:7")
SUITE = os.environ.get("DCS_DOCKER_SUITE", "bookworm")
"""Of Debian, for stand-ins: bookworm is made in half the time of trixie, which the official images are."""
ANSWER_SECONDS = 20
PULL_SECONDS = 180
START_SECONDS = 300
MAKE_SECONDS = 600
OTHER_RUN_SECONDS = 900


class NoEngine(Exception):
    """There is no engine to test with; the message says why."""


@dataclass(frozen=True)
class Engine:
    environment: Mapping[str, str]

    def docker(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        expect: int | None = 0,
        seconds: float = 120,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """What `docker ARGUMENTS` said on stdout; the test fails for another exit status than expected."""
        together = {**self.environment, **(environment or {})}
        return run("docker", *arguments, cwd=cwd, expect=expect, seconds=seconds, environment=together)

    def answers(self) -> bool:
        return self.has("version") and self.has("compose", "version")

    def has(self, *arguments: str, seconds: float = ANSWER_SECONDS) -> bool:
        """`docker ARGUMENTS` ends well."""
        try:
            done = subprocess.run(
                ["docker", *arguments], env=dict(self.environment), capture_output=True, timeout=seconds
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0


@contextmanager
def an_engine() -> Iterator[Engine]:
    """Raises NoEngine."""
    found = Engine(dict(os.environ))
    if found.answers():
        _need_base_images(found)
        yield found
        return
    with _started() as engine:
        _need_base_images(engine)
        yield engine


@contextmanager
def _started() -> Iterator[Engine]:
    """An engine of the kit's; one test run at a time has it."""
    kit = _kit("no Docker engine with Compose v2 answers")
    home = Path(os.environ.get("DCS_DOCKER_DIR") or Path.home() / ".cache/docker-engine")
    home.mkdir(parents=True, exist_ok=True)
    with home.with_name(f"{home.name}.lock").open("w") as lock:
        _wait_for_lock(lock.fileno())
        was_running = _is_running(home)
        _call("starting an engine", START_SECONDS, {}, kit / "start-engine", home)
        try:
            yield Engine(_environment_of(home))
        finally:
            if not was_running:
                subprocess.run([home / "stop"], check=False, capture_output=True, timeout=60)


def _wait_for_lock(lock: int) -> None:
    deadline = time.monotonic() + OTHER_RUN_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise NoEngine(f"another test run has had the engine for {OTHER_RUN_SECONDS} s") from None
            time.sleep(1)


def _is_running(home: Path) -> bool:
    try:
        os.kill(int((home / "dockerd.pid").read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def _environment_of(home: Path) -> dict[str, str]:
    said = run("bash", "-c", '. "$1/env"; env -0', "bash", home)
    return dict(line.split("=", 1) for line in said.split("\0") if "=" in line)


def _need_base_images(engine: Engine) -> None:
    """Those that are here, else from a registry, else stand-ins."""
    missing = [name for name in BASE_IMAGES if not engine.has("image", "inspect", name)]
    if all(engine.has("pull", "--quiet", name, seconds=PULL_SECONDS) for name in missing):
        return
    kit = _kit(f"{', '.join(missing)} can not be pulled")
    _call("making base images", MAKE_SECONDS, engine.environment, kit / "make-base-images", "--suite", SUITE)


def _kit(because: str) -> Path:
    kit = Path(os.environ.get("DCS_DOCKER_KIT") or CHECKOUT.parent / "shared/docker")
    if not (kit / "start-engine").exists():
        raise NoEngine(f"{because}, and there is no kit in {kit} (DCS_DOCKER_KIT) to bring it")
    if os.geteuid() != 0:
        raise NoEngine(f"{because}, and the kit in {kit} needs root")
    return kit


def _call(what: str, seconds: float, environment: Mapping[str, str], *command: str | Path) -> None:
    try:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=seconds
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoEngine(f"{what}: {error}") from error
    if done.returncode != 0:
        raise NoEngine(f"{what}: {' '.join((done.stdout + done.stderr).split())[-300:]}")
