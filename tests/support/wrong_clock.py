"""A wall clock of a program's own, which a test sets wrong while the program runs.

    clock = WrongClock(directory)
    mount = cluster.mount(**clock.environment)
    clock.set(+3600)

A small library, compiled at first use and loaded before the program's own (LD_PRELOAD), adds to the time of day
what a shared page says. Clocks that only count from some start stay as they are, as they do when a real clock is set.
"""

from __future__ import annotations

import mmap
import struct
import subprocess
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile long *wrong_by;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("WRONG_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);

    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    if (page == MAP_FAILED) abort();
    wrong_by = page;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    int result = real_clock_gettime ? real_clock_gettime(clock, time) : -1;

    if (wrong_by && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += *wrong_by;
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone)
{
    struct timespec now;

    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}
"""
COMPILE_SECONDS = 60.0


class WrongClock:
    def __init__(self, directory: Path) -> None:
        source, library, page = directory / "clock.c", directory / "clock.so", directory / "clock"
        source.write_text(SOURCE)
        command: list[str | Path] = ["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", library, source, "-ldl"]
        subprocess.run(command, check=True, timeout=COMPILE_SECONDS)
        page.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "WRONG_CLOCK": str(page)}
        with page.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 8)

    def set(self, wrong_by_seconds: int) -> None:
        """The clock jumps: it is wrong by so much from now on."""
        self._page[:] = struct.pack("l", wrong_by_seconds)
