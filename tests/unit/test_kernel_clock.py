"""The kernel's clock, which stands still between two ticks, is taken for now; any time that was given is kept."""

from __future__ import annotations

import time

from fusefs.kernel_clock import CLOCK_REALTIME_COARSE, TICK_NS, given_or_now

NOW = 1_700_000_000_123_456_789


def test_the_clock_of_the_last_tick_is_now() -> None:
    assert given_or_now(NOW, NOW) is None
    assert given_or_now(NOW - TICK_NS, NOW) is None
    seen = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    assert given_or_now(seen | 1, max(time.time_ns(), seen | 1)) is None


def test_a_time_that_was_given_is_kept() -> None:
    for given in (0, -1, 1, NOW - 3 * TICK_NS, NOW + 1, NOW + 10**9):
        assert given_or_now(given, NOW) == given


def test_a_time_that_came_from_a_file_of_ours_is_kept() -> None:
    """Whole microseconds: a copy made at once has the very time of the original."""
    given = NOW // 1000 * 1000
    assert given_or_now(given, NOW) == given
