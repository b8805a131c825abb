"""A mount from its first call to its last: puts the parts together, mounts, serves, flushes, unmounts.

Called by `fusefs.__main__` in the daemon's process. SIGTERM and SIGINT end it as an unmount
does: what was written is stored first.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyfuse3
import trio

from fusefs.chunks.client import ExtentClient
from fusefs.chunks.limits import Limits
from fusefs.chunks.replicas import Replicas
from fusefs.metadata.client import MetadataClient
from fusefs.metadata.session import Session
from fusefs.mount_facts import mount_facts
from fusefs.operations import Operations
from fusefs.quick_lock import QuickLock
from fusefs.settings import READ_AHEAD_KIB, MountSettings
from fusefs.transport import TrioTransport
from fusefs.vfs.filesystem import Filesystem
from servers.client.naming import NamingClient
from servers.client.storage import StorageClient
from servers.protocol.errors import DcsError, TryAgain
from servers.protocol.ids import ExtentId, InodeNumber, NodeNumber
from servers.protocol.requests import Requests

log = logging.getLogger(__name__)

START_SECONDS = 30.0
"""How long a mount waits for its naming server."""
REQUESTS_AT_ONCE_MAX = 99
DAMAGE_REPORTS_MAX = 100
DAMAGE_AGAIN_SECONDS = 60.0
DAMAGES_KNOWN_MAX = 1000
UNMOUNT_SECONDS = 5.0
READ_SECONDS_MAX = 1.0
"""So long a read of /dev/fuse can stop everything else."""


class CannotMount(Exception):
    """One line that says why, and what to do."""


def check_mountpoint(mountpoint: Path) -> None:
    """Raises CannotMount for what cannot be mounted on. A mount whose daemon was killed can: its place is taken."""
    if _is_dead(mountpoint):
        return
    try:
        mountpoint.stat()
    except FileNotFoundError:
        raise CannotMount(f"{mountpoint} does not exist: make the directory first") from None
    except OSError as error:
        raise CannotMount(f"{mountpoint}: {error.strerror}") from error
    if not mountpoint.is_dir():
        raise CannotMount(f"{mountpoint} is not a directory")
    if mountpoint.is_mount():
        raise CannotMount(f"{mountpoint} is already a mount: choose another directory, or unmount it first")


def _is_dead(mountpoint: Path) -> bool:
    """It is a mount whose daemon was killed."""
    try:
        os.statvfs(mountpoint)  # Asks the daemon each time; stat(2) may answer from what the kernel knows.
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _clear_dead(mountpoint: Path) -> None:
    """Only just before the new mount: it would hide what a program wrote into the directory beneath.

    Raises CannotMount.
    """
    while _is_dead(mountpoint):
        command = ["fusermount3", "-uz", os.fspath(mountpoint)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=UNMOUNT_SECONDS, check=False)
        if done.returncode:
            raise CannotMount(f"cannot take away the dead mount on {mountpoint}: {done.stderr.strip()}")
        log.warning("cleared away the dead mount on %s", mountpoint)
    check_mountpoint(mountpoint)


def run(settings: MountSettings, ready: Callable[[], None]) -> int:
    """Serves until the mount ends; `ready` is called once it is there. 0, or 1 when written data was lost."""
    return trio.run(_run, settings, ready)


async def _run(settings: MountSettings, ready: Callable[[], None]) -> int:
    check_mountpoint(settings.mountpoint)
    transport = TrioTransport(settings.secret)
    naming = NamingClient(transport, settings.naming_urls)
    replicas = Replicas()
    async with trio.open_nursery() as nursery:
        metadata = MetadataClient(naming, nursery)

        def on_new_session() -> None:
            filesystem.files.register_anew()

        session = Session(metadata, naming, replicas.update, f"mount of {settings.mountpoint}", on_new_session)
        await _open_session(session, naming)
        extents = ExtentClient(
            StorageClient(transport, transport.request_at_once), replicas, new_id=session.new_extent,
            volume=session.facts.uuid, report_damage=_damage_reporter(nursery, naming),
            limits=Limits(min_write_replicas=settings.min_write_replicas),
        )  # fmt: skip
        filesystem = Filesystem(settings, nursery, metadata, session, extents, replicas)
        requests = Requests()
        session.telling = lambda: mount_facts(requests, filesystem.statistics())
        _mount(Operations(filesystem, requests), settings)
        filesystem.files.on_moved = _page_dropper(nursery)
        filesystem.files.on_stale_attributes = _drop_attributes
        try:
            if settings.metrics_port:
                nursery.start_soon(_tell_metrics, settings, requests, filesystem)
            nursery.start_soon(session.keep)
            nursery.start_soon(extents.listen)
            nursery.start_soon(_raise_read_ahead, settings.mountpoint)
            nursery.start_soon(filesystem.files.keep_registered)
            nursery.start_soon(filesystem.files.keep_written_back)
            nursery.start_soon(filesystem.files.keep_trimmed)
            nursery.start_soon(filesystem.files.keep_access_times_told)
            nursery.start_soon(_end_on_signal, filesystem)
            ready()
            log.info("mounted %s", settings.mountpoint)
            _wake_from_reading()
            await pyfuse3.main(max_tasks=REQUESTS_AT_ONCE_MAX)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # Python's end gives signals back to the kernel: it would kill us.
            with trio.CancelScope(shield=True):
                await _finish(filesystem, session, settings)
            nursery.cancel_scope.cancel()
    await transport.close()
    return 1 if filesystem.files.lost_bytes else 0


async def _open_session(session: Session, naming: NamingClient) -> None:
    """Waits a while for a naming server that is only just starting. Raises CannotMount."""
    end_at = trio.current_time() + START_SECONDS
    while True:
        try:
            await session.open()
            return
        except TryAgain as error:
            if trio.current_time() > end_at:
                raise CannotMount(f"the naming server at {naming.address} does not answer: {error}") from error
            await trio.sleep(0.2)
        except DcsError as error:
            raise CannotMount(f"the naming server at {naming.address} refuses: {error}") from error


async def _tell_metrics(settings: MountSettings, requests: Requests, filesystem: Filesystem) -> None:
    """A mount works without: that the port is taken is only said."""
    from fusefs.metrics import serve_metrics  # Whoever does not want them does not wait for its import.

    try:
        await serve_metrics(settings.metrics_port, settings.secret, requests, filesystem.statistics)
    except OSError as error:
        log.error("no metrics on port %d: %s", settings.metrics_port, error)


def _wake_from_reading() -> None:
    """Sees to it that no read of /dev/fuse lasts: a signal ends it (EINTR), and pyfuse3 waits for the next request.

    The kernel withdraws a request whose caller is killed, also between our poll(2), which told of it, and our read(2),
    which then blocks: and with it all else this process does, until somebody asks the mount for something.
    """
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, READ_SECONDS_MAX, READ_SECONDS_MAX)


def _use_quick_lock() -> None:
    """pyfuse3 takes a lock for every request. Its trio can be exchanged, as its own asyncio module does."""
    pyfuse3.trio = SimpleNamespace(**{**vars(trio), "Lock": QuickLock})  # type: ignore[attr-defined]


def _mount(operations: Operations, settings: MountSettings) -> None:
    _use_quick_lock()
    options = {"default_permissions", f"fsname={settings.source}", "subtype=dcs"}
    options.add("suid" if settings.allow_suid else "nosuid")
    options.add("dev" if settings.allow_dev else "nodev")
    if settings.noexec:
        options.add("noexec")
    if settings.allow_other:
        options.add("allow_other")
    if settings.read_only:
        options.add("ro")
    _clear_dead(settings.mountpoint)
    try:
        pyfuse3.init(operations, os.fspath(settings.mountpoint), options)
    except RuntimeError as error:
        raise CannotMount(
            f"cannot mount on {settings.mountpoint}: {error} (is /dev/fuse there and allowed?)"
        ) from error


async def _raise_read_ahead(mountpoint: Path) -> None:
    """Larger reads from the kernel. Needs root; without it reads are only slower.

    The kernel sets its own figure as it takes up the mount. stat(2) is answered after that, by
    another task of ours; therefore a thread.
    """

    def write() -> None:
        device = mountpoint.stat().st_dev
        file = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        file.write_text(str(READ_AHEAD_KIB))

    try:
        await trio.to_thread.run_sync(write, abandon_on_cancel=True)
    except OSError as error:
        log.info("the kernel's read-ahead stays small: %s", error)


def _damage_reporter(nursery: trio.Nursery, naming: NamingClient) -> Callable[[ExtentId, NodeNumber, str], None]:
    """Tells the naming server of damaged replicas without making a reader wait."""
    under_way = trio.CapacityLimiter(1)
    waiting = 0
    told: dict[tuple[ExtentId, NodeNumber], float] = {}

    async def tell(extent: ExtentId, node: NodeNumber, why: str) -> None:
        nonlocal waiting
        try:
            async with under_way:
                await naming.report_damage(extent, node, why)
        except DcsError as error:
            log.warning("damage was not reported: %s", error)
        finally:
            waiting -= 1

    def report(extent: ExtentId, node: NodeNumber, why: str) -> None:
        nonlocal waiting
        now = trio.current_time()
        if now - told.get((extent, node), -DAMAGE_AGAIN_SECONDS) < DAMAGE_AGAIN_SECONDS:
            return
        log.warning("damaged replica on node %d: %s", node, why)
        if waiting < DAMAGE_REPORTS_MAX:
            waiting += 1
            told[extent, node] = now
            if len(told) > DAMAGES_KNOWN_MAX:
                del told[next(iter(told))]
            nursery.start_soon(tell, extent, node, why)

    return report


def _drop_attributes(ino: InodeNumber) -> None:
    """Has the kernel ask for an inode's attributes again. It waits for nobody, as long as pages are left alone."""
    with contextlib.suppress(OSError):
        pyfuse3.invalidate_inode(pyfuse3.InodeT(ino), attr_only=True)


def _page_dropper(nursery: trio.Nursery) -> Callable[[InodeNumber], None]:
    """Has the kernel forget an inode's pages; in a thread, because it waits for requests under way."""

    async def drop(ino: InodeNumber) -> None:
        with contextlib.suppress(OSError):
            try:
                await trio.to_thread.run_sync(pyfuse3.invalidate_inode, pyfuse3.InodeT(ino), abandon_on_cancel=True)
            except RuntimeError as error:
                log.error("the kernel may show old content of inode %d: %s", ino, error)

    return lambda ino: nursery.start_soon(drop, ino)


async def _end_on_signal(filesystem: Filesystem) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            log.info("ends on signal %d", number)
            await filesystem.files.flush_all()
            pyfuse3.terminate()
            return


async def _finish(filesystem: Filesystem, session: Session, settings: MountSettings) -> None:
    """Stores what is left, then ends the session and the mount."""
    began = time.monotonic()
    await filesystem.files.flush_all()
    pyfuse3.close(unmount=True)
    with trio.move_on_after(UNMOUNT_SECONDS), contextlib.suppress(DcsError):
        await session.close()
    log.info("unmounted %s after %.1f s", settings.mountpoint, time.monotonic() - began)
    if filesystem.files.lost_bytes:
        log.error("%d written bytes could not be stored and are lost", filesystem.files.lost_bytes)
