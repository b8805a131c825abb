"""Writers, renamers, appenders and readers on two mounts at once, who know what was promised to them.

A `Shift` works in one directory of the volume. On each mount a program of tests/support/promises.py makes,
replaces, renames, removes and appends; another appends lines to a log that both mounts share; a third reads
what the other mount's program was promised. They are processes: this one must hold no file of a mount open
when it starts a server, because the fork closes it and that waits for the server.

No error is expected but on a mount that is killed: tell the shift with `mount_killed` and `mount_is_back`.
`problems` is what went wrong; `check` reads every byte through any mount.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Self

from tests.support import promises
from tests.support.cluster import Mount
from tests.support.commands import opened
from tests.support.manifest import GONE, Manifest, digest_of

LOST = {errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT}
"""What a program on a killed mount may see; the last when its directory is not mounted any more."""
SEEN_SECONDS = 2.5
"""After so long every mount knows of a change of names and sizes."""
READS = 5
FORK = multiprocessing.get_context("fork")
SHARED = "shared"


class Program:
    """One run of promises.py on a mount."""

    def __init__(self, mount: Mount, place: str, manifest: Path, seed: int) -> None:
        self.manifest = manifest
        self._process = subprocess.Popen(
            [sys.executable, "-S", promises.__file__, mount.path / place, manifest, str(seed)],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def problem(self) -> str:
        """Why it has ended; empty while it goes on."""
        if self._process.poll() is None:
            return ""
        assert self._process.stderr
        said = self._process.stderr.read().strip()
        return f"{self.manifest.name}: {os.strerror(int(said)) if said.isdigit() else said or 'ended'}"

    def end_by(self, lost: bool) -> str:
        """It ends as its mount is lost, or is killed; what went wrong."""
        if not lost and self._process.poll() is None:
            self._process.kill()
        _, said = self._process.communicate(timeout=60)
        if self._process.returncode == -signal.SIGKILL or (said.strip().isdigit() and int(said) in LOST and lost):
            return ""
        return f"{self.manifest.name}: exit status {self._process.returncode}, {said}"


class Site:
    """A mount and whether it is there."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.lives: Synchronized[int] = FORK.Value("i", 0)
        self.is_up = FORK.Event()
        self.is_up.set()


class Shift:
    def __init__(self, sites: list[Site], place: str, notes: Path, seed: int) -> None:
        self.place = place
        self._sites = sites
        self._notes = notes
        self._chance = random.Random(seed)
        self._problems: list[str] = []
        self._said = FORK.SimpleQueue()
        """Problems of the other processes."""
        self._end = FORK.Event()
        self._programs: dict[Site, Program] = {}
        self._started = 0
        self._appended = 0
        """How many lines this process has written."""
        self._lines: Synchronized[int] = FORK.Value("q", 0)
        self._workers = [
            FORK.Process(
                name=f"{body.__name__} on {site.mount.path.name}",
                target=self._guard,
                args=(site, body, who),
                daemon=True,
            )
            for who, site in enumerate(sites)
            for body in (self._append, self._read)
        ]

    def __enter__(self) -> Self:
        (self._sites[0].mount.path / self.place).mkdir()
        for site in self._sites:
            wait_until_seen(site.mount.path / self.place)
            self._start_program(site)
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Whoever works is killed in the middle of it; afterwards every mount knows of all that was done."""
        self._end.set()
        self._note(*(program.end_by(lost=False) for program in self._programs.values()))
        for worker in self._workers:
            worker.join(60)
            pids = [worker.pid, *(site.mount.process.pid for site in self._sites)]
            waits = " | ".join(where_it_waits(pid) for pid in pids)
            assert worker.exitcode == 0, f"{worker.name}: exit status {worker.exitcode}; it and the mounts: {waits}"
        time.sleep(SEEN_SECONDS)

    @property
    def lines(self) -> int:
        return self._lines.value

    @property
    def manifests(self) -> list[Path]:
        return sorted(self._notes.glob(f"{self.place}-[0-9]*"))

    def problems(self) -> list[str]:
        while not self._said.empty():
            self._problems.append(self._said.get())
        if not self._end.is_set():
            running = [(site, program) for site, program in self._programs.items() if site.is_up.is_set()]
            return self._problems + [said for _, program in running if (said := program.problem())]
        return self._problems

    def mount_killed(self, site: Site) -> None:
        """After the kill and before the kernel's mount is taken away: the program sees the end of it."""
        self._note(self._programs.pop(site).end_by(lost=True))

    def mount_is_back(self, site: Site) -> None:
        self._start_program(site)

    def promised(self) -> Manifest:
        manifest = Manifest()
        for path in self.manifests:
            manifest.read(path)
        return manifest

    def check(self, directory: Path) -> int:
        """All that was promised is there, and nothing else; how many promises there were. When it has ended."""
        manifest = self.promised()
        manifest.check(directory / self.place, manifest.names)
        possible = manifest.names | manifest.possible.keys() | {SHARED}
        found = {name for name in os.listdir(directory / self.place) if not name.startswith(("temporary-", "log-"))}
        assert found <= possible, f"in {self.place} nobody made {sorted(found - possible)}"
        self._check_shared((directory / self.place / SHARED).read_bytes())
        return manifest.promised

    def _check_shared(self, content: bytes) -> None:
        """Every line whole and at most once, each mount's in order, and those that were promised all there."""
        seen: dict[int, list[int]] = {}
        for line in content.splitlines(keepends=True):
            assert (len(line), line[-1:]) == (11, b"\n"), f"torn line {line!r} in {self.place}"
            seen.setdefault(int(line[:1]), []).append(int(line[2:]))
        for who, numbers in seen.items():
            assert numbers == sorted(set(numbers)), f"lines of {who} in {self.place} twice or out of order"
        for who, path in enumerate(sorted(self._notes.glob(f"{self.place}-lines-*"))):
            promised = {int(number) for number in path.read_text().split()}
            assert promised <= set(seen.get(who, [])), f"lines of {who} are lost in {self.place}"

    def _note(self, *problems: str) -> None:
        self._problems += [problem for problem in problems if problem]

    def _start_program(self, site: Site) -> None:
        path = self._notes / f"{self.place}-{self._started}"
        self._started += 1
        self._programs[site] = Program(site.mount, self.place, path, self._chance.randrange(1 << 32))

    def _guard(self, site: Site, body: Callable[[Site, int], None], who: int) -> None:
        """Calls `body` again and again; what fails while the mount is killed does not count."""
        while not self._end.is_set():
            if not site.is_up.wait(0.1):
                continue
            life = site.lives.value
            try:
                body(site, who)
            except (OSError, AssertionError) as error:
                if site.lives.value == life and site.is_up.is_set():
                    self._said.put(
                        f"{time.strftime('%T')} {body.__name__} on {site.mount.path.name} in {self.place}: {error!r}"
                    )
                    return

    def _append(self, site: Site, who: int) -> None:
        """Lines at the end of the shared log; noted when they are synced."""
        unsynced: list[int] = []
        path, notes = site.mount.path / self.place / SHARED, self._notes / f"{self.place}-lines-{who}"
        notes.touch()
        with opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as log:
            while not self._end.is_set() and site.is_up.is_set():
                number, self._appended = self._appended, self._appended + 1
                os.write(log, b"%d %08d\n" % (who, number))
                unsynced.append(number)
                if number % 7 == 0:
                    os.fsync(log)
                    with notes.open("a") as kept:
                        kept.writelines(f"{synced}\n" for synced in unsynced)
                    with self._lines.get_lock():
                        self._lines.value += len(unsynced)
                    unsynced.clear()
                    self._end.wait(0.05)

    def _read(self, site: Site, who: int) -> None:
        """What others were promised a moment ago is there, and is something that they wrote."""
        before = self.promised()
        life = site.lives.value
        if self._end.wait(SEEN_SECONDS):
            return
        where, chance = site.mount.path / self.place, random.Random(self._chance.random())
        names = [name for name, digest in before.kept.items() if digest != GONE]
        for name in chance.sample(names, min(READS, len(names))):
            found = digest_of(where / name)
            if self._end.is_set() or site.lives.value != life:
                return
            assert found in self._ever(name), f"{name} was never {found}"
        for name, length in before.logs.items():
            content = (where / name).read_bytes()
            if self._end.is_set() or site.lives.value != life:
                return
            assert len(content) >= length, f"{name}: {len(content)} of {length} promised bytes"
            assert content == promises.content_of_log(len(content)), f"{name} is torn"

    def _ever(self, name: str) -> set[str]:
        words = [line.split() for path in self.manifests for line in path.read_text().splitlines()]
        return {what for word, of, what in words if word == "try" and of == name}


def where_it_waits(pid: int | None) -> str:
    """In the kernel, as proc(5) tells it."""
    told = []
    for file in ("wchan", "syscall", "stack"):
        with suppress(OSError):
            told.append(Path(f"/proc/{pid}/{file}").read_text().strip())
    return "; ".join(told)


def wait_until_seen(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.is_dir():
        assert time.monotonic() < deadline, f"{path} is not seen"
        time.sleep(0.05)
