"""Starting, asking and stopping a local cluster. `dcs up` calls this.

    up      supervisor → redis → naming → storage nodes → mount, each when those before it work
    down    mount → storage nodes → naming → redis → supervisor

Both are what they say when they return, or raise ClusterProblem with one clear line; both can be
repeated after any interruption. One at a time per DCS_HOME: `Home.locked`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from servers.admin.cluster import health, leftovers, mountpoint, ports
from servers.admin.cluster import programs as make
from servers.admin.cluster.errors import ClusterProblem
from servers.admin.cluster.home import Home, write_file
from servers.admin.cluster.programs import MOUNT_STOP_SECONDS, STOP_SECONDS, Program
from servers.admin.cluster.settings import ClusterSettings
from servers.admin.cluster.supervisor import ProcessState, Supervisor

UP_SECONDS = 60.0
ONE_UP_SECONDS = 25.0
"""For one program; longer than the supervisor tries to start one that keeps dying."""
POLL_SECONDS = 0.1
LOG_TAIL_BYTES = 4096

Say = Callable[[str], None]


@dataclass(frozen=True)
class Service:
    name: str
    state: str
    """running, or what supervisord calls it: stopped, starting, backoff, exited, fatal."""
    pid: int
    where: str
    data: Path | None
    log: Path
    problem: str | None
    """Why it is not healthy."""


@dataclass(frozen=True)
class Report:
    home: Path
    mountpoint: Path | None
    naming_url: str | None
    services: tuple[Service, ...]
    """Empty when nothing runs."""
    changed: bool = False
    """Something was started."""

    @property
    def is_running(self) -> bool:
        return bool(self.services)

    @property
    def is_healthy(self) -> bool:
        return self.is_running and not self.problems

    @property
    def problems(self) -> list[str]:
        return [f"{s.name} is {s.state}: {s.problem} (log: {s.log})" for s in self.services if s.problem]


def up(where: Path, settings: ClusterSettings, say: Say = lambda line: None) -> Report:
    """The cluster runs, is healthy, and is mounted at `where`. Raises ClusterProblem."""
    _check_tools()
    home = Home(settings.home)
    home.make()
    mount = mountpoint.canonical(where)
    with home.locked():
        supervisor = Supervisor(home)
        is_new = not supervisor.is_running()
        if is_new:
            _launch(home, supervisor, mount, settings, say)
        elif home.mountpoint() != mount:
            raise ClusterProblem(
                f"This cluster is already mounted at {home.mountpoint()}; stop it first (deploy/up --stop), "
                "or set another DCS_HOME for a second one"
            )
        cluster = _cluster(home, mount)
        started = _start_missing(home, supervisor, cluster, say)
        return _survey(home, supervisor.states(), cluster, mount, changed=is_new or started)


def status(settings: ClusterSettings) -> Report:
    """What runs now. Waits for nothing but the answers."""
    home = Home(settings.home)
    mount = home.mountpoint()
    supervisor = Supervisor(home)
    if mount is None or home.kept_ports() is None:
        return Report(home.path, None, None, ())
    if supervisor.is_running():
        return _survey(home, supervisor.states(), _cluster(home, mount), mount)
    if left := leftovers.find(home):
        names = ", ".join(f"{leftover.command} (pid {leftover.pid})" for leftover in left)
        raise ClusterProblem(f"The supervisor is gone, but these run on: {names}. Start or stop the cluster again")
    return Report(home.path, None, None, ())


def down(settings: ClusterSettings, say: Say = lambda line: None) -> bool:
    """Everything is stored, unmounted and ended; False when nothing ran.

    Raises MountBusy when somebody works below the mountpoint: everything keeps running.
    """
    home = Home(settings.home)
    if not home.run.is_dir():
        return False
    with home.locked():
        supervisor = Supervisor(home)
        did_run = supervisor.is_running()
        if did_run:
            _stop(home, supervisor, say)
        did_run = bool(leftovers.end(home)) or did_run
        _clean(home)
        return did_run


def _check_tools() -> None:
    missing = [tool for tool in ("redis-server", "fusermount3") if shutil.which(tool) is None]
    if missing:
        raise ClusterProblem(f"Not installed: {', '.join(missing)}. deploy/up installs them")
    mountpoint.check_fuse()


def _launch(home: Home, supervisor: Supervisor, mount: Path, settings: ClusterSettings, say: Say) -> None:
    for leftover in leftovers.end(home):
        say(f"Ended a process of an earlier start: {leftover.command} (pid {leftover.pid})")
    _clean(home)
    mountpoint.clear_dead(mount)
    mountpoint.make_ready(mount)
    choice = ports.choose(settings, home.kept_ports(), ports.is_free, ports.any_free)
    for note in choice.notes:
        say(note)
    home.keep_ports(choice.ports)
    home.keep_mountpoint(mount)
    write_file(home.redis_conf, make.redis_conf(home, choice.ports))
    write_file(home.supervisor_conf, make.supervisor_conf(_cluster(home, mount)))
    supervisor.launch(make.environment(home, choice.ports, mount, os.environ))


def _cluster(home: Home, mount: Path) -> tuple[Program, ...]:
    kept = home.kept_ports()
    if kept is None:
        raise ClusterProblem(f"{home.settings_file} is missing, but the cluster runs")
    return make.programs(home, kept, mount)


def _start_missing(home: Home, supervisor: Supervisor, cluster: tuple[Program, ...], say: Say) -> bool:
    """Everything runs and works; whether anything had to be started. Raises ClusterProblem.

    A storage node that does not work holds nothing else up: two of three are enough to work with.
    """
    deadline = time.monotonic() + UP_SECONDS
    started = False
    problems = []
    for program in cluster:
        if not supervisor.states()[program.name].is_up:
            say(f"Starting {program.name}")
            supervisor.start(program.name)
            started = True
        problem = _wait_until_healthy(home, supervisor, program, min(deadline, time.monotonic() + ONE_UP_SECONDS))
        if problem is not None and program.kind in ("redis", "naming"):
            raise ClusterProblem(problem)
        problems += [problem] if problem else []
    if problems:
        raise ClusterProblem("; ".join(problems))
    return started


def _wait_until_healthy(home: Home, supervisor: Supervisor, program: Program, deadline: float) -> str | None:
    """None when it works; what is wrong when it does not in time."""
    secret, naming_address = home.secret(), _naming_address(home)
    while True:
        now = supervisor.states()[program.name]
        if now.state in ("FATAL", "EXITED"):
            return f"{program.name} keeps ending. {_last_line(home, program)}"
        problem = health.problem_of(program, naming_address, secret)
        if problem is None and now.is_up:
            return None
        if time.monotonic() > deadline:
            why = problem or "it restarts again and again"
            return f"{program.name} is not healthy: {why}. {_last_line(home, program)}"
        time.sleep(POLL_SECONDS)


def _naming_address(home: Home) -> str:
    kept = home.kept_ports()
    return f"{make.LOOPBACK}:{kept.naming}" if kept else ""


def _last_line(home: Home, program: Program) -> str:
    log = home.log(program.name)
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f"Its log {log} ends with: {lines[-1]}" if lines else f"Its log {log} is empty"


def _survey(
    home: Home,
    states: dict[str, ProcessState],
    cluster: Iterable[Program],
    mount: Path,
    *,
    changed: bool = False,
) -> Report:
    secret, naming_address = home.secret(), _naming_address(home)

    def look(program: Program) -> Service:
        now = states[program.name]
        problem = health.problem_of(program, naming_address, secret) if now.is_up else _last_line(home, program)
        # STARTING lasts START_SECONDS; what works does not need to wait for it.
        state = "running" if problem is None else now.state.lower()
        return Service(program.name, state, now.pid, program.where, program.data, home.log(program.name), problem)

    return Report(home.path, mount, f"http://{naming_address}", tuple(map(look, cluster)), changed)


def _stop(home: Home, supervisor: Supervisor, say: Say) -> None:
    mount = home.mountpoint()
    if mount is not None:
        _stop_mount(home, supervisor, mount, say)
    names = [name for name in supervisor.states() if name != "mount"]
    for name in [*sorted(name for name in names if name.startswith("storage")), "naming", "redis"]:
        say(f"Stopping {name}")
        supervisor.stop(name, STOP_SECONDS + 5)
    supervisor.shut_down()


def _stop_mount(home: Home, supervisor: Supervisor, mount: Path, say: Say) -> None:
    """Nothing is mounted and the mount's process has ended by itself, so all it held is stored."""
    say(f"Unmounting {mount}")
    before = supervisor.states()["mount"]
    mountpoint.clear_dead(mount)
    if mountpoint.is_mounted(mount):
        mountpoint.unmount(mount)
        deadline = time.monotonic() + MOUNT_STOP_SECONDS
        while supervisor.states()["mount"].pid == before.pid != 0:
            if time.monotonic() > deadline:
                raise ClusterProblem(
                    f"The mount's process (pid {before.pid}) is still storing data after {MOUNT_STOP_SECONDS} s; "
                    f"everything keeps running, see {home.log('mount')}"
                )
            time.sleep(POLL_SECONDS)
        ended = supervisor.states()["mount"]
        if ended.exit_status:
            say(f"The mount ended with exit status {ended.exit_status}; see {home.log('mount')}")
    supervisor.stop("mount", MOUNT_STOP_SECONDS + 5)
    mountpoint.clear_dead(mount)


def _clean(home: Home) -> None:
    """What a cluster that does not run any more has left: a dead mount, and the files of `run/`."""
    mount = home.mountpoint()
    if mount is not None:
        mountpoint.clear_dead(mount)
    for file in home.run.iterdir():
        if file.name != "lock":
            file.unlink()
