"""Faults of all kinds for a long time, under writers, renamers, appenders and readers on two mounts.

`DCS_TEST_CHAOS_SECONDS` is how long, `DCS_TEST_SEED` which faults; a failure prints the seed.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from tests.support.chaos import Chaos, MemoryWatch
from tests.support.cluster import Cluster
from tests.support.commands import MIB
from tests.support.processes import wait_for
from tests.support.shift import Shift, Site

SECONDS = float(os.environ.get("DCS_TEST_CHAOS_SECONDS", "1800"))
SHIFTS_KEPT = 4
"""The files of older ones are checked and removed, so that the volume does not grow."""
WARM_SECONDS = int(min(60, SECONDS / 4))
GROWTH_SHARE, GROWTH_BYTES = 0.25, 32 * MIB
JUDGED_SECONDS = 900
"""In less, caches are still being filled."""


@pytest.mark.long
@pytest.mark.timeout(SECONDS * 1.5 + 1500)
@pytest.mark.fault("S1", "S2", "S3", "S6", "S9", "S10", "S12", "M2", "M4", "M5", "C1", "R3")
def test_whatever_fails_nothing_is_lost_and_nothing_is_wrong(tmp_path: Path) -> None:
    """No error but on a mount that was killed; all that was acknowledged is right; nobody's memory grows."""
    seed = int(os.environ.get("DCS_TEST_SEED", random.randrange(1 << 32)))
    print(f"seed {seed}")
    with Cluster(
        4, DEAD_AFTER_SECONDS="8", REPAIR_WAIT_SECONDS="2", SCRUB_PERIOD_SECONDS="5", RECOUNT_PERIOD_SECONDS="3",
        SESSION_LEASE_SECONDS="25", CONDEMNED_KEEP_SECONDS="5",
    ) as cluster:  # fmt: skip
        chance = random.Random(seed)
        sites = [Site(cluster.mount("one")), Site(cluster.mount("two"))]
        chaos, memory = Chaos(cluster, sites, chance), MemoryWatch(cluster)
        memory.start()
        cluster.cleanups.callback(lambda: shutil.copytree(cluster.directory / "logs", tmp_path / "logs"))
        promised = work_under(chaos, sites, chance, tmp_path)
        with Shift(sites, "last", tmp_path, chance.randrange(1 << 32)) as last:  # Who was killed late is judged, too.
            chaos.shifts.append(last)
            wait_for(lambda: memory.knows_all(2 * WARM_SECONDS), "each process has lived long enough", 4 * WARM_SECONDS)
        assert last.problems() == []
        memory.finish()
        for site in sites:
            site.mount.remount()
            promised += sum(shift.check(site.mount.path) for shift in chaos.shifts)
        wait_for(chaos.is_whole, "the cluster is whole", 240)
        wait_for(lambda: not cluster.status()["repair"]["dropped"], "surplus copies are gone", 240)
        found = cluster.dcs_json("fsck", "--data", "--wait", "120")
        assert found["replicas"] == 3 * found["extents"]
        print(f"{promised} promises kept, {found}")
        grown = list(memory.growth(WARM_SECONDS))
        for name, seconds, warm, end in sorted(grown):
            print(f"{name:12} {seconds:5} s: {warm / MIB:6.1f} MiB when warm, {end / MIB:6.1f} MiB at the end")
        if SECONDS >= JUDGED_SECONDS:
            assert not [one for one in grown if one[3] > one[2] * (1 + GROWTH_SHARE) + GROWTH_BYTES]


def work_under(chaos: Chaos, sites: list[Site], chance: random.Random, notes: Path) -> int:
    """Shift after shift, each under one draw of faults; how many promises were checked by the way."""
    began, number, promised = time.monotonic(), 0, 0
    draws: list[tuple[str, ...]] = []
    while time.monotonic() - began < SECONDS:
        draws = draws or chance.sample(chaos.draws, len(chaos.draws))  # Each comes as often as the others.
        kinds = draws.pop()
        number += 1
        shift = Shift(sites, f"shift-{number}", notes, chance.randrange(1 << 32))
        chaos.shift = shift
        chaos.shifts.append(shift)
        with shift:
            time.sleep(chance.uniform(0.5, 3))
            print(f"{time.monotonic() - began:7.1f} s: {' and '.join(kinds)}", flush=True)
            chaos.strike(kinds)
            print(f"{time.monotonic() - began:7.1f} s: undone; {shift.problems()}", flush=True)
            assert shift.problems() == []
            chaos.recover()
            print(f"{time.monotonic() - began:7.1f} s: whole; {shift.lines} lines", flush=True)
        assert shift.problems() == []
        promised += chance.choice(chaos.shifts).check(chance.choice(sites).mount.path)
        if len(chaos.shifts) > SHIFTS_KEPT:
            oldest, where = chaos.shifts.pop(0), chance.choice(sites).mount.path
            promised += oldest.check(where)
            shutil.rmtree(where / oldest.place)
    return promised
