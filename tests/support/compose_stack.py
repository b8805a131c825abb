"""The stack of compose.yaml as a user would run it, under a name and in a directory of its own.

The directory holds what a checkout has, so that commands can be called word for word. Nothing is left at the end:
no container, volume, network or mount. Images stay.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from tests.support.commands import run
from tests.support.docker_engine import Engine
from tests.support.processes import CHECKOUT, free_port, wait_for

PARTS = (
    "compose.yaml",
    "Dockerfile.server",
    "Dockerfile.fuse",
    ".dockerignore",
    "README.md",
    "fusefs",
    "servers",
    "deploy",
)
TAG = "test"
BUILD_SECONDS = 900.0
UP_SECONDS = 240.0
HEALTHY_SECONDS = 120.0


class Stack:
    def __init__(self, engine: Engine, directory: Path, *overlays: str) -> None:
        self.engine = engine
        self.directory = directory
        self.project = f"dcs-test-{os.getpid()}-{directory.name}".lower()
        self.shared = directory / "mnt"
        self.mountpoint = self.shared / "dcs"
        self.images = (f"dcs-server:{TAG}", f"dcs-fuse:{TAG}")
        files = ["compose.yaml", *overlays]
        self.environment = {
            **engine.environment,
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": ":".join(files),
            "COMPOSE_PROGRESS": "plain",
            "IMAGE_TAG": TAG,
            "NAMING_PORT": str(free_port()),
            "NAMING_PORT_2": str(free_port()),
            "ROOT_UID": str(os.geteuid()),
            "ROOT_GID": str(os.getegid()),
        }

    def __enter__(self) -> Self:
        for part in PARTS:
            if (CHECKOUT / part).is_dir():
                unwanted = shutil.ignore_patterns("__pycache__")
                shutil.copytree(CHECKOUT / part, self.directory / part, ignore=unwanted)
            else:
                shutil.copy(CHECKOUT / part, self.directory / part)
        self.shared.mkdir()
        if "shared" not in run("findmnt", "-no", "PROPAGATION", "-T", self.shared):
            run("mount", "--bind", self.shared, self.shared)
            run("mount", "--make-rshared", self.shared)
        return self

    def __exit__(self, *_: object) -> None:
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "10", expect=None, seconds=120)
        for _attempt in range(3):  # A mount that a killed container left, then the directory's own.
            subprocess.run(["umount", "-l", self.mountpoint], check=False, capture_output=True, timeout=20)
        subprocess.run(["umount", self.shared], check=False, capture_output=True, timeout=20)

    def compose(self, *arguments: str | Path, expect: int | None = 0, seconds: float = 120) -> str:
        return self.engine.docker(
            "compose", *arguments, cwd=self.directory, expect=expect, seconds=seconds, environment=self.environment
        )

    def shell(self, script: str, *, seconds: float = UP_SECONDS) -> str:
        """What a user would type, in the directory; stops at the first command that fails."""
        return run("bash", "-euo", "pipefail", "-c", script, cwd=self.directory, seconds=seconds,
                   environment=self.environment)  # fmt: skip

    def dcs(self, *arguments: str) -> str:
        """In the mount's container, which is quicker than one of its own."""
        return self.compose("exec", "-T", "fuse", "dcs", *arguments)

    def build(self) -> float:
        """Builds the images; the seconds that took."""
        began = time.monotonic()
        self.compose("build", seconds=BUILD_SECONDS)
        return time.monotonic() - began

    def up(self, *arguments: str) -> float:
        """Starts all; the seconds until the mount could be used."""
        began = time.monotonic()
        self.compose("up", "--detach", *arguments, seconds=UP_SECONDS)
        self.wait_usable()
        return time.monotonic() - began

    def wait_usable(self) -> None:
        """A file can be stored through the mount."""
        probe = f"timeout 20 sh -c 'echo works >{self.mountpoint}/.probe && rm {self.mountpoint}/.probe'"
        wait_for(lambda: self.mountpoint.is_mount() and _succeeds(probe), "the mount works", HEALTHY_SECONDS)

    def containers(self, *services: str) -> list[str]:
        """The names of those that run."""
        return sorted(self.compose("ps", "--format", "{{.Name}}", *services).split())

    def inspect(self, container: str) -> dict[str, Any]:
        inspected: dict[str, Any] = json.loads(self.engine.docker("inspect", container))[0]
        return inspected

    def crash(self, container: str) -> None:
        """Every process in it dies by SIGKILL and the engine restarts it; returns when it is healthy again."""
        before = self.inspect(container)["State"]["StartedAt"]
        self.engine.docker("exec", container, "sh", "-c", "kill -9 -1", expect=None)

        def came_back() -> bool:
            state = self.inspect(container)["State"]
            return state["StartedAt"] != before and state.get("Health", {}).get("Status") == "healthy"

        wait_for(came_back, f"{container} is healthy again", HEALTHY_SECONDS)

    def exec(self, container: str, *command: str, expect: int | None = 0) -> str:
        return self.engine.docker("exec", container, *command, expect=expect)

    def secret(self) -> str:
        return self.exec(self.containers("naming_server")[0], "cat", "/run/dcs/secret").strip()


def _succeeds(script: str) -> bool:
    return subprocess.run(["sh", "-c", script], check=False, capture_output=True, timeout=60).returncode == 0
