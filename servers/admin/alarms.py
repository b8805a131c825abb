"""What an operator should know of the storage nodes: a function of what the naming server tells of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

Row = dict[str, Any]  # Any: values of JSON.


def scrub_age(nodes: Sequence[Row], now_s: float) -> str:
    """In words: how old the oldest last complete scrub of a disk is, and whose are late."""
    disks = list(_disks(nodes))
    if not disks:
        return "no node tells of one"
    oldest = max(now_s - disk["scrubbed_s"] for _, disk in disks)
    late = [f"{disk['path']} of node {node['id']}" for node, disk in disks if disk["scrub_late"]]
    words = f"every disk read completely within the last {duration(oldest)}"
    return words if not late else f"LATE on {', '.join(late)}: the oldest is {duration(oldest)} ago"


def disk_troubles(nodes: Sequence[Row]) -> list[str]:
    """One line for each disk or node that somebody should look at."""
    lines = []
    for node, disk in _disks(nodes):
        where = f"{disk['path']} of node {node['id']}"
        if disk["state"] != "good":
            lines.append(f"{where} is {disk['state'].upper()} after {disk['errors']} errors")
        elif disk["errors"]:
            lines.append(f"{where} gave {disk['errors']} errors")
        if disk["set_aside"]:
            lines.append(f"{where} keeps {disk['set_aside']} damaged replicas aside")
    lines += [f"node {node['id']} may have lost replicas and is being asked" for node in nodes if node["in_doubt"]]
    return lines


def disk_states(disks: Sequence[Row]) -> str:
    """How many there are, and how many of them in which bad state: `3`, `3, 1 failed`."""
    bad = Counter(disk["state"] for disk in disks if disk["state"] != "good")
    return ", ".join([str(len(disks)), *(f"{count} {state}" for state, count in sorted(bad.items()))])


def replicas_in_words(disks: Sequence[Row]) -> str:
    """The good ones, and in which bad state others are: `120`, `80, 40 on failed disks, 2 set aside`."""
    failed = sum(disk["replicas"] for disk in disks if disk["state"] == "failed")
    bad = {"on failed disks": failed, "set aside": sum(disk["set_aside"] for disk in disks)}
    good = sum(disk["replicas"] for disk in disks) - failed
    return ", ".join([str(good), *(f"{count} {state}" for state, count in bad.items() if count)])


def scrubbed(disks: Sequence[Row], now_s: float) -> str:
    """How long ago the oldest last complete scrub of these disks was: `3 h`, `12 days, LATE`."""
    if not disks:
        return "-"
    oldest = duration(max(now_s - disk["scrubbed_s"] for disk in disks))
    return f"{oldest}, LATE" if any(disk["scrub_late"] for disk in disks) else oldest


def duration(seconds: float) -> str:
    """With one unit, as people say it: 90 s, 12 min, 30 h, 9 days."""
    for unit, size, upto in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 48 * 3600)):
        if seconds < upto:
            return f"{max(0, round(seconds / size))} {unit}"
    return f"{round(seconds / 86400)} days"


def _disks(nodes: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Of the nodes that are not dead: what those said last is no news."""
    for node in nodes:
        if node["state"] != "dead":
            for disk in node["disks"]:
                yield node, disk
