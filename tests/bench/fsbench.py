#!/usr/bin/env python3
"""fsbench - one set of file-system workloads for side-by-side comparisons.

    fsbench.py DIR --label NAME --json out.json [--remount CMD]
               [--proc client=REGEX] [--proc server=REGEX]
    fsbench.py --compare a.json b.json ...          # Markdown table

Everything is done below DIR/fsbench-XXXX, which is removed at the end (the
source tree's tar file lives in a scratch directory outside DIR, removed too).

How it measures
  * Workloads come in groups. The first pass runs every group once; passes 2
    and 3 (--reps) repeat the groups, cheapest first, as long as --budget
    allows. The table gives median, min, max and the number of repetitions.
  * syncfs() of DIR's file system and of the --backing directories (where the
    servers keep their data) runs, untimed, before each timed section, so that
    one section does not pay for the dirty pages of the one before. Not sync():
    that would wait for every mount of the machine, a hung one for ever.
  * "cold" = that syncfs(), then --remount CMD (shell; must unmount and mount DIR's
    file system again) if given, else POSIX_FADV_DONTNEED on the files; then
    3 > /proc/sys/vm/drop_caches (needs root). Which of them were done is in
    the JSON ("cold_method"). The cache of the host below a VM stays as it is.
  * A failed operation or content that does not verify is never a result: the
    metric gets an error instead of a number, and the exit status is 1.
  * A loop that takes longer than --loop-cap ends early; its rate is then that
    of the operations done (marked "~" in the table).
  * CPU: utime+stime of the processes that match --proc ROLE=REGEX (matched
    against the command line; children started later count too), taken around
    each timed section, likewise of the kernel's threads ("kernel") and of this
    script and its children ("bench"). "foreign" is the machine's CPU time that
    none of them explains: other users, interrupts. A repetition with foreign
    above 15% of the machine's capacity is noisy: it is left out of the median
    if there is a quiet one, else the median is marked "!".

MB = 10**6 bytes. Python 3.11 or newer, standard library only; calls tar, cp,
rm, ls, git.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import multiprocessing
import os
import platform
import random
import re
import shutil
import sqlite3
import stat
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

VERSION = 1
MIB = 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)
PAGE = 4096
PAGES_PER_MIB = MIB // PAGE
POOL_MIB = 16

# metric: (group, unit, what it is). Units ending in "/s", and "IOPS", are
# better high; "s" is better low.
METRICS = {
    "seq_write": ("seq", "MB/s", "write the big file, 1 MiB blocks, + fsync"),
    "seq_read_cold": ("seq", "MB/s", "read it, 1 MiB blocks, cold"),
    "seq_read_warm": ("seq", "MB/s", "read it again at once"),
    "rand_read_4k": ("rand", "IOPS", "4 KiB preads, QD1, no page twice, cold"),
    "rand_write_4k_fdatasync": ("rand", "IOPS", "4 KiB pwrite + fdatasync each"),
    "rand_write_4k_buffered": ("rand", "IOPS", "4 KiB pwrites, one fsync at the end"),
    "create_4k": ("small", "files/s", "open(O_EXCL) + write 4 KiB + close, one dir"),
    "stat_cold": ("small", "ops/s", "stat each of them, cold"),
    "ls_l_cold": ("small", "files/s", "`ls -l` of that dir, cold"),
    "read_4k_cold": ("small", "files/s", "open + read + close each, cold"),
    "unlink": ("small", "ops/s", "unlink each"),
    "create_4k_fsync": ("small", "files/s", "as create_4k with fsync before close"),
    "mkdir": ("dirs", "ops/s", "mkdir, one parent"),
    "rename": ("dirs", "ops/s", "rename of small files within a dir"),
    "rmdir": ("dirs", "ops/s", "rmdir"),
    "untar": ("tree", "s", "tar -xf of the source tree"),
    "git_add_commit": ("tree", "s", "git init, add -A, commit of the tree"),
    "git_status": ("tree", "s", "git status right after"),
    "cp_r": ("tree", "s", "cp -r of the untarred tree"),
    "rm_rf": ("tree", "s", "rm -rf of that copy"),
    "sqlite_tx": ("sqlite", "tx/s", "one INSERT per transaction, journal=DELETE, sync=FULL"),
    "par_write": ("par", "MB/s", "parallel writers, 1 MiB blocks, + fsync each"),
}
GROUPS = ("seq", "rand", "small", "dirs", "tree", "sqlite", "par")


class VerifyError(Exception):
    """The file system gave back something other than what was written."""


# --------------------------------------------------------------------------
# test data


class Data:
    """Incompressible content that says where it belongs.

    Page n of generation g is 16 bytes (n, g) and 4080 bytes of a pool of
    random bytes, so that a page in the wrong place, an old page and a zero
    page are all seen.
    """

    def __init__(self, seed: int):
        rng = random.Random(seed)
        self.pool = [rng.randbytes(MIB) for _ in range(POOL_MIB)]

    def page(self, n: int, gen: int) -> bytes:
        block, slot = divmod(n, PAGES_PER_MIB)
        at = slot * PAGE
        body = self.pool[(block + gen) % POOL_MIB][at + 16 : at + PAGE]
        return n.to_bytes(8, "little") + gen.to_bytes(8, "little") + body

    def block(self, i: int, gen: int, out: bytearray) -> None:
        """Fill out with the 256 pages of MiB number i."""
        out[:] = self.pool[(i + gen) % POOL_MIB]
        tail = gen.to_bytes(8, "little")
        first = i * PAGES_PER_MIB
        for slot in range(PAGES_PER_MIB):
            at = slot * PAGE
            out[at : at + 16] = (first + slot).to_bytes(8, "little") + tail


def check_page(got: bytes, want: bytes, where: str) -> None:
    if got != want:
        kind = "short" if len(got) != len(want) else "wrong content"
        raise VerifyError(f"{where}: {kind}, header {got[:16].hex()} not {want[:16].hex()}")


def pwrite_all(fd: int, data, offset: int) -> None:
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)


# --------------------------------------------------------------------------
# CPU accounting


class CpuMeter:
    """CPU seconds by role; counts on across processes that end and come anew.

    What a process did between the last sample and its end is lost, so sample
    before stopping one.
    """

    def __init__(self, roles: dict[str, re.Pattern], pids: dict[int, str]):
        self.roles, self.pids = roles, pids
        self.tick = os.sysconf("SC_CLK_TCK")
        self.seen: dict[tuple[int, str], float] = {}
        self.total = dict.fromkeys((*roles, *pids.values(), "kernel"), 0.0)
        self.own_family = self._ancestors()
        self._scan(first=True)

    @staticmethod
    def _ancestors() -> set[int]:
        out, pid = set(), os.getpid()
        while pid > 1:
            out.add(pid)
            try:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, ValueError, IndexError):
                break
        return out

    def _role_of(self, pid: int) -> str | None:
        if pid in self.pids:
            return self.pids[pid]
        try:
            cmd = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return None
        line = cmd.replace(b"\0", b" ").decode(errors="replace").strip()
        if not line:
            return None
        return next((r for r, rx in self.roles.items() if rx.search(line)), None)

    def _scan(self, first: bool = False) -> None:
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) in self.own_family:
                continue
            try:
                f = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except (OSError, IndexError):
                continue
            role = "kernel" if f[1] == "2" else self._role_of(int(entry))
            if role is None:
                continue
            used = (int(f[11]) + int(f[12])) / self.tick
            key = (int(entry), f[19])  # pid + start time
            before = self.seen.get(key, used if first else 0.0)
            self.total[role] += used - before
            self.seen[key] = used

    def sample(self) -> dict[str, float]:
        self._scan()
        out = dict(self.total)
        t = os.times()
        out["bench"] = t.user + t.system + t.children_user + t.children_system
        v = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        out["machine"] = (sum(v[:8]) - v[3] - v[4]) / self.tick  # without idle, iowait
        return out

    @staticmethod
    def delta(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
        d = {k: round(b[k] - a[k], 3) for k in b}
        known = sum(v for k, v in d.items() if k != "machine")
        d["foreign"] = round(max(0.0, d.pop("machine") - known), 3)
        return d


# --------------------------------------------------------------------------
# the source tree


def make_tree_tar(path: str, roots: list[str], max_files: int, max_bytes: int) -> dict:
    """Tar of real source files (+20 symlinks); the same for the same roots."""
    picked: list[tuple[str, str, int]] = []
    total = 0
    for rank, root in enumerate(roots):
        for top, dirs, files in os.walk(root):
            dirs[:] = sorted(d for d in dirs if d not in ("__pycache__", "site-packages", ".git"))
            for name in sorted(files):
                full = os.path.join(top, name)
                st = os.lstat(full)
                if not stat.S_ISREG(st.st_mode) or st.st_size > MIB or name.endswith(".pyc"):
                    continue
                if len(picked) >= max_files or total + st.st_size > max_bytes:
                    continue
                picked.append((full, f"src/r{rank}/" + os.path.relpath(full, root), st.st_size))
                total += st.st_size
    if not picked:
        raise SystemExit("no files for the source tree; see --tree-src")
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for full, arc, _ in picked:
            tar.add(full, arc, recursive=False)
        for i in range(0, len(picked), max(1, len(picked) // 20)):
            info = tarfile.TarInfo(picked[i][1] + ".lnk")
            info.type, info.linkname = tarfile.SYMTYPE, os.path.basename(picked[i][1])
            info.mtime = 1_000_000_000
            tar.addfile(info)
    return {"files": len(picked), "bytes": total, "tar_bytes": os.path.getsize(path), "roots": roots}


def tree_walk(root: str):
    for top, dirs, files in os.walk(root):
        dirs.sort()
        if ".git" in dirs:
            dirs.remove(".git")
        for name in sorted(files):
            full = os.path.join(top, name)
            yield full, os.path.relpath(full, root), os.lstat(full)


def tree_digest(root: str) -> str:
    h = hashlib.sha1()
    for full, rel, st in tree_walk(root):
        if stat.S_ISLNK(st.st_mode):  # its permissions mean nothing, and differ
            body, mode = os.readlink(full).encode(), stat.S_IFLNK
        else:
            with open(full, "rb") as f:
                body = f.read()
            mode = stat.S_IFMT(st.st_mode) | (st.st_mode & 0o111)
        h.update(f"{rel}\0{mode:o}\0{len(body)}\0".encode())
        h.update(body)
    return h.hexdigest()


def tree_count(root: str) -> tuple[int, int]:
    n = size = 0
    for _, _, st in tree_walk(root):
        n, size = n + 1, size + st.st_size
    return n, size


# --------------------------------------------------------------------------
# the benchmark


class Section:
    """What the body of a timed section may tell: how much, and how long."""

    amount: float | None = None  # for rates; None: the metric is the time itself
    wall: float | None = None  # overrides the measured time
    capped = False


def mount_of(path: str) -> tuple[str, str]:
    """(mount point, fs type) that path lies on."""
    best = ("", "")
    real = os.path.realpath(path)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        point = left.split()[4].encode().decode("unicode_escape")
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best[0]):
            best = (point, right.split()[0])
    return best


class Bench:
    def __init__(self, a: argparse.Namespace):
        self.a = a
        self.dir = os.path.realpath(a.dir)
        self.mount = mount_of(self.dir)
        self.cpu = CpuMeter(a.proc, a.pid)
        self.data = Data(a.seed)
        self.values: dict[str, list[float]] = {}
        self.capped: set[str] = set()
        self.errors: dict[str, str] = {}
        self.cpu_used: dict[str, list[dict]] = {}
        self.group_cost: dict[str, float] = {}
        self.features: dict[str, object] = {}
        self.current: str | None = None
        self.rep = 0
        self.start = time.monotonic()
        self.scratch = tempfile.mkdtemp(prefix="fsbench-scratch-", dir=a.scratch)
        self.base = tempfile.mkdtemp(prefix="fsbench-", dir=self.dir)
        self.tar = os.path.join(self.scratch, "tree.tar")
        self.tree: dict = {}
        self.remount_s: list[float] = []
        self.sync_s: list[float] = []
        self.interrupted = False
        self.rand_gen = 0  # generation of the last write to rand.bin
        self.rand_gens: dict[int, int] = {}  # page -> its generation, if not 0

    # -- helpers

    def p(self, *parts: str) -> str:
        return os.path.join(self.base, *parts)

    def run(self, *cmd: str, cwd: str | None = None, env: dict | None = None) -> str:
        r = subprocess.run(cmd, cwd=cwd, env=env, capture_output=True, text=True, timeout=self.a.cmd_timeout)
        if r.returncode:
            raise OSError(errno.EIO, f"{' '.join(cmd[:3])}: rc {r.returncode}: {r.stderr.strip()[:300]}")
        return r.stdout

    def settle(self) -> None:
        t0 = time.monotonic()
        for where in (self.base, *self.a.backing):
            fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if LIBC.syncfs(fd):
                    raise OSError(ctypes.get_errno(), "syncfs", where)
            finally:
                os.close(fd)
        self.sync_s.append(time.monotonic() - t0)

    def cold(self, *files: str, remount: bool = True) -> None:
        self.settle()
        if remount and self.a.remount:
            self.cpu.sample()
            t0 = time.monotonic()
            r = subprocess.run(self.a.remount, shell=True, capture_output=True, text=True, timeout=180)
            if r.returncode:
                raise SystemExit(f"--remount failed, rc {r.returncode}: {r.stderr.strip()[:500]}")
            if mount_of(self.dir) != self.mount or not os.path.isdir(self.base):
                raise SystemExit(f"after --remount {self.dir} is not what it was: {mount_of(self.dir)}")
            self.remount_s.append(time.monotonic() - t0)
        else:
            for name in files:
                fd = os.open(name, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)
        if self.a.drop_caches:
            Path("/proc/sys/vm/drop_caches").write_text("3\n")

    @contextlib.contextmanager
    def timed(self, metric: str):
        self.current = metric
        self.settle()
        s, c0, t0 = Section(), self.cpu.sample(), time.perf_counter()
        yield s
        wall = time.perf_counter() - t0
        c1 = self.cpu.sample()
        wall = wall if s.wall is None else s.wall
        if METRICS[metric][1] == "s":
            value = wall
        elif not s.amount:
            raise VerifyError("nothing was done")
        else:
            value = s.amount / wall
        self.values.setdefault(metric, []).append(value)
        if s.capped:
            self.capped.add(metric)
        used = CpuMeter.delta(c0, c1) | {"wall": round(wall, 4)}
        self.cpu_used.setdefault(metric, []).append(used)
        self.current = None

    def capped_loop(self, items, s: Section, cap: float | None = None):
        """Yield items until done or until the cap; s.capped tells which."""
        end = time.perf_counter() + (cap or self.a.loop_cap)
        for item in items:
            yield item
            if time.perf_counter() > end:
                s.capped = True
                return

    # -- groups

    def g_seq(self) -> None:
        a, name, gen = self.a, self.p("seq.bin"), self.rep
        # Pages would cost too much to build inside the timed loop: each MiB
        # is its 16-byte header and the rest of a pool block, written as one.
        rest = [memoryview(b)[16:] for b in self.data.pool]

        def head(i: int) -> bytes:
            return i.to_bytes(8, "little") + gen.to_bytes(8, "little")

        if os.path.exists(name):
            os.unlink(name)
        done = 0
        with self.timed("seq_write") as s:
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                for i in self.capped_loop(range(a.seq_mib), s):
                    n = os.writev(fd, (head(i), rest[i % POOL_MIB]))
                    if n != MIB:
                        pwrite_all(fd, (head(i) + rest[i % POOL_MIB])[n:], i * MIB + n)
                        os.lseek(fd, (i + 1) * MIB, os.SEEK_SET)
                    done += 1
                os.fsync(fd)
            finally:
                os.close(fd)
            s.amount = done * MIB / 1e6
        if os.stat(name).st_size != done * MIB:
            raise VerifyError(f"size {os.stat(name).st_size}, not {done * MIB}")

        buf = bytearray(MIB)
        for metric in ("seq_read_cold", "seq_read_warm"):
            if metric.endswith("cold"):
                self.cold(name)
            with self.timed(metric) as s:
                n = 0
                fd = os.open(name, os.O_RDONLY)
                try:
                    for i in self.capped_loop(range(done), s):
                        if os.readv(fd, (buf,)) != MIB:
                            raise VerifyError(f"short read at MiB {i}")
                        if buf[:16] != head(i):
                            raise VerifyError(f"MiB {i} has header {buf[:16].hex()}")
                        n += 1
                finally:
                    os.close(fd)
                s.amount = n * MIB / 1e6
        with open(name, "rb", buffering=0) as f:  # untimed: every byte
            for i in range(done):
                if f.readinto(buf) != MIB or buf[16:] != rest[i % POOL_MIB]:
                    raise VerifyError(f"wrong content in MiB {i}")
        os.unlink(name)

    def g_rand(self) -> None:
        a, name, data = self.a, self.p("rand.bin"), self.data
        pages = a.rand_mib * PAGES_PER_MIB
        rng = random.Random(a.seed + self.rep)
        gens = self.rand_gens
        if not os.path.exists(name):
            block = bytearray(MIB)
            with open(name, "wb", buffering=0) as f:
                for i in range(a.rand_mib):
                    data.block(i, 0, block)
                    pwrite_all(f.fileno(), block, i * MIB)
                os.fsync(f.fileno())

        self.cold(name)
        order = rng.sample(range(pages), min(pages, 20_000))
        fd = os.open(name, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        try:
            with self.timed("rand_read_4k") as s:
                got = [os.pread(fd, PAGE, n * PAGE) for n in self.capped_loop(order, s, a.sync_seconds)]
                s.amount, s.capped = len(got), False
            for n, page in zip(order, got, strict=False):
                check_page(page, data.page(n, gens.get(n, 0)), f"page {n}")
        finally:
            os.close(fd)

        def check_written(written) -> None:
            self.cold(name, remount=False)
            with open(name, "rb", buffering=0) as f:
                for n in rng.sample(written, min(len(written), 2000)):
                    check_page(os.pread(f.fileno(), PAGE, n * PAGE), data.page(n, gens[n]), f"page {n}")

        fd = os.open(name, os.O_RDWR)
        try:
            self.rand_gen += 1
            order = rng.sample(range(pages), pages)
            with self.timed("rand_write_4k_fdatasync") as s:
                count = 0
                for n in self.capped_loop(order, s, a.sync_seconds):
                    if os.pwrite(fd, data.page(n, self.rand_gen), n * PAGE) != PAGE:
                        raise VerifyError("short write")
                    os.fdatasync(fd)
                    count += 1
                s.amount, s.capped = count, False
        finally:
            os.close(fd)
        gens.update((n, self.rand_gen) for n in order[:count])
        check_written(order[:count])

        fd = os.open(name, os.O_RDWR)
        try:
            self.rand_gen += 1
            order = rng.sample(range(pages), min(pages, a.bufwrite_mib * PAGES_PER_MIB))
            body = [data.page(n, self.rand_gen) for n in order]
            with self.timed("rand_write_4k_buffered") as s:
                count = 0
                for n in self.capped_loop(order, s):
                    if os.pwrite(fd, body[count], n * PAGE) != PAGE:
                        raise VerifyError("short write")
                    count += 1
                os.fsync(fd)
                s.amount = count
        finally:
            os.close(fd)
        gens.update((n, self.rand_gen) for n in order[:count])
        check_written(order[:count])

    def g_small(self) -> None:
        a, d, gen = self.a, self.p(f"small{self.rep}"), self.rep
        os.mkdir(d)
        body = [self.data.page(i, gen) for i in range(a.files)]
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL

        def create(prefix: str, count: int, sync: bool, s: Section) -> list[str]:
            names = []
            for i in self.capped_loop(range(count), s):
                name = f"{d}/{prefix}{i:05d}"
                fd = os.open(name, flags, 0o644)
                try:
                    if os.write(fd, body[i]) != PAGE:
                        raise VerifyError("short write")
                    if sync:
                        os.fsync(fd)
                finally:
                    os.close(fd)
                names.append(name)
            s.amount = len(names)
            return names

        with self.timed("create_4k") as s:
            names = create("f", a.files, False, s)

        self.cold(*names[:1])
        with self.timed("stat_cold") as s:
            for name in names:
                if os.stat(name).st_size != PAGE:
                    raise VerifyError(f"size of {name}")
            s.amount = len(names)

        self.cold(*names[:1])
        with self.timed("ls_l_cold") as s:
            out = self.run("ls", "-l", d, env=os.environ | {"LC_ALL": "C"})
            s.amount = len(names)
        rows = [x.split() for x in out.splitlines()[1:]]
        if sorted(r[-1] for r in rows) != [os.path.basename(n) for n in names] or any(r[4] != str(PAGE) for r in rows):
            raise VerifyError(f"ls -l shows {len(rows)} entries, or wrong names or sizes")

        self.cold(*names)
        got = []
        with self.timed("read_4k_cold") as s:
            for name in self.capped_loop(names, s):
                fd = os.open(name, os.O_RDONLY)
                try:
                    got.append(os.read(fd, 2 * PAGE))
                finally:
                    os.close(fd)
            s.amount = len(got)
        for i, page in enumerate(got):
            check_page(page, body[i], names[i])

        with self.timed("unlink") as s:
            for name in names:
                os.unlink(name)
            s.amount = len(names)
        if os.listdir(d):
            raise VerifyError("entries left after unlink")

        with self.timed("create_4k_fsync") as s:
            names = create("s", max(1, a.files // 10), True, s)
        shutil.rmtree(d)

    def g_dirs(self) -> None:
        d = self.p(f"dirs{self.rep}")
        os.mkdir(d)
        names = [f"{d}/d{i:04d}" for i in range(self.a.dirs)]
        with self.timed("mkdir") as s:
            for n in names:
                os.mkdir(n)
            s.amount = len(names)
        if len(os.listdir(d)) != len(names):
            raise VerifyError("wrong number of directories")
        with self.timed("rmdir") as s:
            for n in names:
                os.rmdir(n)
            s.amount = len(names)
        if os.listdir(d):
            raise VerifyError("entries left after rmdir")

        for i, n in enumerate(names):
            with open(n, "wb") as f:
                f.write(str(i).encode())
        pairs = [(n, f"{d}/renamed-{i:04d}") for i, n in enumerate(names)]
        with self.timed("rename") as s:
            for old, new in pairs:
                os.rename(old, new)
            s.amount = len(pairs)
        if sorted(os.listdir(d)) != sorted(os.path.basename(new) for _, new in pairs):
            raise VerifyError("wrong names after rename")
        for i in range(0, len(pairs), 50):
            if Path(pairs[i][1]).read_bytes() != str(i).encode():
                raise VerifyError("wrong content after rename")
        shutil.rmtree(d)

    def g_tree(self) -> None:
        d = self.p(f"tree{self.rep}")
        os.mkdir(d)
        src, copy = f"{d}/src", f"{d}/copy"
        with open(self.tar, "rb") as f:  # into the page cache
            while f.read(MIB):
                pass

        def check(root: str) -> None:
            got: object
            want: object
            if self.rep == 1:
                got, want = tree_digest(root), self.tree["digest"]
            else:
                got, want = tree_count(root), tuple(self.tree["count"])
            if got != want:
                raise VerifyError(f"tree {os.path.basename(root)} differs: {got} not {want}")

        with self.timed("untar"):
            self.run("tar", "-xf", self.tar, "-C", d)
        check(src)

        with self.timed("cp_r"):
            self.run("cp", "-r", src, copy)
        check(copy)

        with self.timed("rm_rf"):
            self.run("rm", "-rf", copy)
        if os.path.exists(copy):
            raise VerifyError("the copy is still there")

        env = os.environ | {
            "HOME": self.scratch,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "b",
            "GIT_AUTHOR_EMAIL": "b@localhost",
            "GIT_COMMITTER_NAME": "b",
            "GIT_COMMITTER_EMAIL": "b@localhost",
        }
        git = ("git", "-c", "gc.auto=0", "-c", "safe.directory=*")
        with self.timed("git_add_commit"):
            self.run(*git, "init", "-q", cwd=src, env=env)
            self.run(*git, "add", "-A", cwd=src, env=env)
            self.run(*git, "commit", "-q", "-m", "all", cwd=src, env=env)
        with self.timed("git_status"):
            out = self.run(*git, "status", "--porcelain", cwd=src, env=env)
        if out:
            raise VerifyError(f"git status is not clean: {out[:200]}")
        if self.rep == 1:
            self.current = "git_add_commit"
            self.run(*git, "fsck", "--no-progress", cwd=src, env=env)
        listed = self.run(*git, "ls-files", cwd=src, env=env).count("\n")
        if listed != self.tree["count"][0]:
            raise VerifyError(f"git has {listed} files, not {self.tree['count'][0]}")
        shutil.rmtree(d)

    def g_sqlite(self) -> None:
        name = self.p(f"db{self.rep}.sqlite")
        db = sqlite3.connect(name, isolation_level=None, timeout=5)
        try:
            mode = db.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
            db.execute("PRAGMA synchronous=FULL")
            if mode != "delete":
                raise VerifyError(f"journal mode is {mode}")
            db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, k TEXT, v BLOB)")
            blob = self.data.pool[0][:200]
            with self.timed("sqlite_tx") as s:
                n = 0
                for i in self.capped_loop(range(self.a.sqlite_tx), s, min(15.0, self.a.loop_cap)):
                    db.execute("INSERT INTO t VALUES (?, ?, ?)", (i, f"key-{i}", blob))
                    n += 1
                s.amount = n
        finally:
            db.close()
        self.cold(name, remount=False)
        db = sqlite3.connect(name)
        try:
            count = db.execute("SELECT count(*), min(v)=max(v) FROM t").fetchone()
            check = db.execute("PRAGMA integrity_check").fetchone()[0]
        finally:
            db.close()
        if count != (n, 1) or check != "ok":
            raise VerifyError(f"sqlite: rows {count}, not {n}; integrity {check}")
        os.unlink(name)

    def g_par(self) -> None:
        a, gen = self.a, self.rep
        names = [self.p(f"par{i}.bin") for i in range(a.par)]
        ctx = multiprocessing.get_context("fork")
        gate = ctx.Barrier(a.par + 1)
        cap = a.loop_cap
        done = ctx.Array("l", a.par)

        def writer(k: int) -> None:
            block = bytearray(MIB)
            blocks = []
            for i in range(min(a.par_mib, POOL_MIB)):
                self.data.block(k * a.par_mib + i, gen, block)
                blocks.append(bytes(block[16:]))
            fd = os.open(names[k], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            gate.wait(60)
            end = time.monotonic() + cap
            for i in range(a.par_mib):
                head = (k * a.par_mib + i).to_bytes(8, "little") + gen.to_bytes(8, "little")
                if os.writev(fd, (head, blocks[i % len(blocks)])) != MIB:
                    os._exit(3)
                done[k] = i + 1
                if time.monotonic() > end:
                    break
            os.fsync(fd)
            os.close(fd)

        procs = [ctx.Process(target=writer, args=(k,)) for k in range(a.par)]
        try:
            with self.timed("par_write") as s:
                for q in procs:
                    q.start()
                gate.wait(60)
                t0 = time.perf_counter()
                for q in procs:
                    q.join(a.cmd_timeout)
                s.wall = time.perf_counter() - t0
                bad = [q.exitcode for q in procs if q.exitcode != 0]
                if bad:
                    raise OSError(errno.EIO, f"writers ended with {bad}")
                s.amount = sum(done[:]) * MIB / 1e6
                s.capped = sum(done[:]) < a.par * a.par_mib
        finally:
            for q in procs:
                if q.is_alive():
                    q.kill()
        self.cold(*names, remount=False)
        buf = bytearray(MIB)
        for k, name in enumerate(names):
            with open(name, "rb", buffering=0) as f:
                for i in range(done[k]):
                    head = (k * a.par_mib + i).to_bytes(8, "little") + gen.to_bytes(8, "little")
                    if f.readinto(buf) != MIB or buf[:16] != head:
                        raise VerifyError(f"{name}: wrong MiB {i}")
                if f.read(1):
                    raise VerifyError(f"{name}: too long")
            os.unlink(name)

    # -- what works at all

    def probe_features(self) -> None:
        d = self.p("features")
        os.mkdir(d)
        f0 = f"{d}/f"
        Path(f0).write_bytes(b"x" * 8192)

        def opened(flags: int, fn):
            fd = os.open(f0, flags)
            try:
                return fn(fd)
            finally:
                os.close(fd)

        def hardlink():
            os.link(f0, f"{d}/l")
            return os.stat(f0).st_nlink == 2

        def symlink():
            os.symlink("f", f"{d}/s")
            return os.readlink(f"{d}/s") == "f"

        def xattr():
            os.setxattr(f0, "user.t", b"v")
            return os.getxattr(f0, "user.t") == b"v"

        # Unlock by hand: FUSE tells of a close() only later (RELEASE), so that
        # a lock may outlive it for a moment.
        def flock():
            def go(fd):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(fd, fcntl.LOCK_UN)
                return True

            return opened(os.O_RDWR, go)

        def posix_lock():
            def go(fd):
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.lockf(fd, fcntl.LOCK_UN)
                return True

            return opened(os.O_RDWR, go)

        def fallocate():
            opened(os.O_RDWR, lambda fd: os.posix_fallocate(fd, 0, 65536))
            return os.stat(f0).st_size == 65536

        def punch_hole():
            def go(fd):
                if LIBC.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096)):
                    raise OSError(ctypes.get_errno(), "fallocate")
                return os.pread(fd, 4096, 0) == bytes(4096)

            return opened(os.O_RDWR, go)

        def mmap_shared():
            def go(fd):
                with mmap.mmap(fd, 4096) as m:
                    m[:4] = b"mmap"
                    m.flush()
                return os.pread(fd, 4, 0) == b"mmap"

            return opened(os.O_RDWR, go)

        def o_direct():
            def go(fd):
                with mmap.mmap(-1, 4096) as m:
                    return os.preadv(fd, [m], 0) == 4096

            return opened(os.O_RDONLY | os.O_DIRECT, go)

        def o_tmpfile():
            os.close(os.open(d, os.O_TMPFILE | os.O_RDWR))
            return True

        def unlinked_open():
            with open(f"{d}/u", "wb+", buffering=0) as f:
                f.write(b"still")
                os.unlink(f"{d}/u")
                return os.pread(f.fileno(), 5, 0) == b"still"

        def rename_exchange():
            Path(f"{d}/x").write_text("x")
            Path(f"{d}/y").write_text("y")
            if LIBC.renameat2(-100, f"{d}/x".encode(), -100, f"{d}/y".encode(), 2):
                raise OSError(ctypes.get_errno(), "renameat2")
            return Path(f"{d}/x").read_text() == "y"

        def mknod_fifo():
            os.mkfifo(f"{d}/p")
            return stat.S_ISFIFO(os.stat(f"{d}/p").st_mode)

        def copy_file_range():
            with open(f0, "rb") as src, open(f"{d}/c", "wb") as dst:
                return os.copy_file_range(src.fileno(), dst.fileno(), 4096) == 4096

        def sqlite_wal():
            db = sqlite3.connect(f"{d}/w.db", timeout=2)
            try:
                ok = db.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal"
                db.execute("CREATE TABLE t (x)")
                db.execute("INSERT INTO t VALUES (1)")
                db.commit()
                return ok
            finally:
                db.close()

        probes: tuple[Callable[[], object], ...]
        probes = (hardlink, symlink, xattr, flock, posix_lock, fallocate, punch_hole, mmap_shared)
        probes += (o_direct, o_tmpfile, unlinked_open, rename_exchange, mknod_fifo, copy_file_range, sqlite_wal)
        for fn in probes:
            try:
                self.features[fn.__name__] = bool(fn())
            except OSError as e:
                self.features[fn.__name__] = errno.errorcode.get(e.errno or 0, str(e))
            except Exception as e:  # sqlite3.Error and the like
                self.features[fn.__name__] = f"{type(e).__name__}: {e}"
        shutil.rmtree(d, ignore_errors=True)

    # -- passes

    def run_group(self, group: str) -> None:
        t0 = time.monotonic()
        self.current = None
        todo = [m for m, v in METRICS.items() if v[0] == group]
        had = {m: len(self.values.get(m, ())) for m in todo}
        try:
            getattr(self, "g_" + group)()
        except (OSError, VerifyError, sqlite3.Error, subprocess.TimeoutExpired) as e:
            why = f"rep {self.rep}: {type(e).__name__}: {e}"[:400]
            hit = self.current
            if hit is None:  # failed between sections: blame the last one done
                done = [m for m in todo if len(self.values.get(m, ())) > had[m]]
                hit = done[-1] if done else todo[0]
            self.errors[hit] = why
            for m in todo:
                if m != hit and len(self.values.get(m, ())) == had[m]:
                    self.errors.setdefault(m, f"rep {self.rep}: not run, {hit} failed")
            print(f"  FAILED {hit}: {why}", file=sys.stderr, flush=True)
        cost = time.monotonic() - t0
        self.group_cost[group] = max(self.group_cost.get(group, 0.0), cost)
        used = sum(self.cpu_used[m][-1]["wall"] for m in todo if len(self.values.get(m, ())) > had[m])
        print(f"  rep {self.rep} {group}: {cost:.1f} s, {used:.1f} of them timed", file=sys.stderr, flush=True)

    def main(self) -> dict:
        a = self.a
        try:
            if "tree" in a.groups:
                self.tree = make_tree_tar(self.tar, a.tree_src, a.tree_files, int(a.tree_mb * 1e6))
                with tempfile.TemporaryDirectory(dir=self.scratch) as t:
                    subprocess.run(["tar", "-xf", self.tar, "-C", t], check=True)
                    self.tree["digest"] = tree_digest(t + "/src")
                    self.tree["count"] = list(tree_count(t + "/src"))
            self.probe_features()
            self.start = time.monotonic()
            for self.rep in range(1, a.reps + 1):
                order = list(a.groups)
                if self.rep > 1:
                    order.sort(key=lambda g: self.group_cost[g])
                for group in order:
                    left = a.budget - (time.monotonic() - self.start)
                    if self.rep > 1 and self.group_cost[group] > left:
                        print(f"  rep {self.rep} {group}: no time left", file=sys.stderr)
                        continue
                    self.run_group(group)
        except KeyboardInterrupt:
            self.interrupted = True
            if self.current:
                self.errors[self.current] = f"rep {self.rep}: interrupted"
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
            shutil.rmtree(self.base, ignore_errors=True)
        return self.report()

    def report(self) -> dict:
        a = self.a
        results = {}
        old = json.loads(Path(a.json).read_text())["results"] if a.append else {}
        for m, (group, unit, what) in METRICS.items():
            before = old.get(m, {})
            if group not in a.groups and not before:
                continue
            vals = before.get("values", []) + [round(v, 3) for v in self.values.get(m, [])]
            cpus = before.get("cpu_reps", []) + self.cpu_used.get(m, [])
            r: dict = {"unit": unit, "what": what, "n": len(vals), "values": vals}
            if vals:
                quiet = [i for i, c in enumerate(cpus) if not noisy(c)]
                r["noisy"] = len(vals) - len(quiet)
                used = [vals[i] for i in quiet] or vals
                r["median"] = round(statistics.median(used), 3)
                r["min"], r["max"] = min(used), max(used)
                picked = [cpus[i] for i in quiet] or cpus
                keys = {k for c in picked for k in c}
                r["cpu_s"] = {k: round(statistics.median(c.get(k, 0.0) for c in picked), 3) for k in sorted(keys)}
                r["cpu_reps"] = cpus
            if before.get("error"):
                r["error"] = before["error"]
            if m in self.capped or before.get("capped"):
                r["capped"] = True
            if m in self.errors:
                r["error"] = self.errors[m]
            results[m] = r
        cold = ["syncfs"]
        cold.append("remount" if a.remount else "POSIX_FADV_DONTNEED")
        if a.drop_caches:
            cold.append("drop_caches=3")
        keep = "seq_mib rand_mib bufwrite_mib files dirs tree_files tree_mb sqlite_tx par par_mib"
        return {
            "fsbench": VERSION,
            "label": a.label,
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "dir": self.dir,
            "mount": {"point": self.mount[0], "type": self.mount[1]},
            "host": {
                "kernel": platform.release(),
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
                "loadavg_end": os.getloadavg(),
            },
            "cold_method": " + ".join(cold),
            "remount_s": [round(x, 2) for x in self.remount_s],
            "untimed_syncfs_s": {"sum": round(sum(self.sync_s), 1), "max": round(max(self.sync_s, default=0), 1)},
            "interrupted": self.interrupted,
            "sizes": {k: getattr(a, k) for k in (*keep.split(), "sync_seconds", "seed")},
            "tree": self.tree,
            "features": self.features,
            "elapsed_s": round(time.monotonic() - self.start, 1),
            "cpu_total_s": {k: round(v, 2) for k, v in self.cpu.sample().items() if k in self.cpu.total},
            "results": results,
        }


# --------------------------------------------------------------------------
# output


def noisy(cpu: dict) -> bool:
    return cpu["wall"] > 0.2 and cpu["foreign"] > 0.15 * cpu["wall"] * (os.cpu_count() or 1)


def fmt(v: float) -> str:
    return f"{v:,.0f}" if v >= 100 else f"{v:.1f}" if v >= 10 else f"{v:.2f}"


def table(rep: dict) -> str:
    head = f"{'metric':25}{'unit':>8}{'median':>10}{'min':>10}{'max':>10} quiet  cpu-s (median)"
    lines = [f"{rep['label']}  ({rep['mount']['type']}, cold = {rep['cold_method']})", head]
    for m, r in rep["results"].items():
        if "median" in r:
            mark = ("~" if r.get("capped") else "") + ("!" if r["noisy"] == r["n"] else "")
            cpu = "  ".join(f"{k} {v:.2f}" for k, v in r["cpu_s"].items() if v >= 0.005)
            row = f"{m:25}{r['unit']:>8}{mark + fmt(r['median']):>10}{fmt(r['min']):>10}{fmt(r['max']):>10}"
            lines.append(f"{row}{r['n'] - r['noisy']:>4}/{r['n']}  {cpu}")
        if "error" in r:
            lines.append(f"{m:25}   ERROR {r['error']}")
    no = {k: v for k, v in rep["features"].items() if v is not True}
    lines.append(f"features missing: {no or 'none'}")
    if rep["interrupted"]:
        lines.append("INTERRUPTED: not all repetitions were done")
    lines.append(f"cpu over the run: {rep['cpu_total_s']}; elapsed {rep['elapsed_s']} s")
    return "\n".join(lines)


def compare(files: list[str]) -> str:
    reps = [json.loads(Path(f).read_text()) for f in files]
    lines = ["| metric | unit | " + " | ".join(r["label"] for r in reps) + " |"]
    lines.append("|---|---|" + "---:|" * len(reps))
    for m, (_, unit, _) in METRICS.items():
        cells = []
        for r in reps:
            x = r["results"].get(m)
            if not x:
                cells.append("-")
            elif "error" in x:
                cells.append("FAILED")
            elif "median" not in x:
                cells.append("-")
            else:
                n = x["n"] - x["noisy"] or x["n"]
                few = "" if n >= 3 else f" (n={n})"
                mark = ("~" if x.get("capped") else "") + ("!" if x["noisy"] == x["n"] else "")
                cells.append(mark + fmt(x["median"]) + few)
        if any(c != "-" for c in cells):
            lines.append(f"| {m} | {unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse_args(argv: list[str]) -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("dir", nargs="?", help="a directory on the mounted file system")
    ap.add_argument("--compare", nargs="+", metavar="JSON", help="print a Markdown table of saved results")
    ap.add_argument("--label", help="name in the output (default: the file-system type)")
    ap.add_argument("--json", metavar="FILE", help="write the JSON there (default: stdout, after the table)")
    ap.add_argument("--append", action="store_true", help="add the repetitions to those in the --json file")
    ap.add_argument("--reps", type=int, default=3)
    ap.add_argument("--budget", type=float, default=330, help="seconds; no repetition starts that would pass it")
    ap.add_argument("--loop-cap", type=float, default=30, help="seconds for one timed loop")
    ap.add_argument("--cmd-timeout", type=float, default=120, help="seconds for one tar, cp, git, ...")
    ap.add_argument("--only", type=lambda s: s.split(","), metavar="G,G", help="groups: " + ",".join(GROUPS))
    ap.add_argument("--remount", metavar="CMD", help="shell command that unmounts and mounts again")
    ap.add_argument("--proc", action="append", default=[], metavar="ROLE=REGEX", help="CPU by command line")
    ap.add_argument("--pid", action="append", default=[], metavar="ROLE=PID", help="CPU by process id")
    ap.add_argument(
        "--backing", action="append", metavar="DIR", help="where servers keep data, for syncfs (default: the scratch)"
    )
    ap.add_argument("--scratch", help="where the tar file is put (default: the temporary directory)")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--seq-mib", type=int, default=1024)
    ap.add_argument("--rand-mib", type=int, default=256)
    ap.add_argument("--bufwrite-mib", type=int, default=64)
    ap.add_argument("--sync-seconds", type=float, default=5, help="for the random 4 KiB loops")
    ap.add_argument("--files", type=int, default=2000)
    ap.add_argument("--dirs", type=int, default=500)
    ap.add_argument("--tree-files", type=int, default=3000)
    ap.add_argument("--tree-mb", type=float, default=40)
    ap.add_argument("--tree-src", action="append", metavar="DIR", help="roots of the source tree")
    ap.add_argument("--sqlite-tx", type=int, default=500)
    ap.add_argument("--par", type=int, default=4)
    ap.add_argument("--par-mib", type=int, default=128)
    a = ap.parse_args(argv)
    if a.compare:
        return a
    if not a.dir or not os.path.isdir(a.dir):
        ap.error("DIR must be a directory")
    a.groups = a.only or list(GROUPS)
    a.append = a.append and bool(a.json) and os.path.exists(a.json)
    if set(a.groups) - set(GROUPS):
        ap.error("unknown group in --only")
    a.proc = {k: re.compile(v) for k, v in (x.split("=", 1) for x in a.proc)}
    a.pid = {int(v): k for k, v in (x.split("=", 1) for x in a.pid)}
    a.drop_caches = os.geteuid() == 0 and os.access("/proc/sys/vm/drop_caches", os.W_OK)
    if not a.tree_src:
        lib = sysconfig.get_path("stdlib")
        extra = os.path.join(lib, "site-packages")
        a.tree_src = [x for x in (lib, extra, "/usr/lib/python3/dist-packages") if os.path.isdir(x)]
    a.backing = a.backing or [a.scratch or tempfile.gettempdir()]
    a.label = a.label or mount_of(a.dir)[1]
    return a


def main(argv: list[str]) -> int:
    a = parse_args(argv)
    if a.compare:
        print(compare(a.compare))
        return 0
    rep = Bench(a).main()
    print(table(rep))
    text = json.dumps(rep, indent=1)
    if a.json:
        Path(a.json).write_text(text + "\n")
    else:
        print(text)
    return 1 if any("error" in r for r in rep["results"].values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
