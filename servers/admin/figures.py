"""Figures in a few words: functions of what servers and mounts tell of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

REQUESTS_SHOWN = 4

Row = dict[str, Any]  # Any: values of JSON.


def requests_in_words(rows: Sequence[Row]) -> str:
    """The first of them, which are the slowest."""
    return "; ".join(map(_request, rows[:REQUESTS_SHOWN])) or "none"


def _request(row: Row) -> str:
    failures = f", {row['failures']} failed" if row["failures"] else ""
    return f"{row['count']} {row['verb']}, half {_within(row['half_ms'])}, 99 % {_within(row['most_ms'])}{failures}"


def _within(bound_ms: int | None) -> str:
    return "without any bound" if bound_ms is None else f"within {bound_ms} ms"


def errors_in_words(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(errors.items()) if count) or "none"


def share_in_words(some: int, others: int) -> str:
    """Of all of both, how many were the first."""
    return f"{some / (some + others):.0%}" if some + others else "-"
