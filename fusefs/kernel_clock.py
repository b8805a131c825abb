"""Tells the kernel's `now` from a time that somebody gave.

touch(1) and all who ask utimensat(2) for the current time reach a file system as the kernel's own
clock with a flag, and the binding hands on the clock without the flag. That clock stands still
between two ticks of the timer: a file touched right after another was written would seem to be
the older one, and make(1) would build again what it had just built. Called by `operations`.

Told by their look: the kernel's clock has nanoseconds, and is at most two ticks behind when we
see it. Times that this file system gives are whole microseconds, so copying one from a file of
ours is never mistaken; of a file elsewhere only one that was changed within those few milliseconds.
"""

from __future__ import annotations

import time

CLOCK_REALTIME_COARSE = 5
"""See clock_gettime(2); Python has no name for it."""
TICK_NS = round(time.clock_getres(CLOCK_REALTIME_COARSE) * 1e9)


def given_or_now(time_ns: int, now_ns: int) -> int | None:
    """The time to set; None when it is the kernel's now."""
    is_now = 0 <= now_ns - time_ns <= 2 * TICK_NS and time_ns % 1000 != 0
    return None if is_now else time_ns
