"""The links between a mount and the servers are slow, drip, break and flip bits: slow, perhaps, but always right."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.bad_link import BadLink, Trouble
from tests.support.caller import Caller
from tests.support.cluster import Mount
from tests.support.commands import MIB, sha256_of, write_pattern
from tests.support.load import Load, wait_steps
from tests.support.watched import read_watched, write_watched
from tests.support.wire import Wire, WiredCluster

STALL_SECONDS_MAX = 5.0
FILE_MIB = 64
READS_MAX = 6
"""From which node is read is up to the mount: by chance it turns to another before it meets the one that drips."""


@pytest.fixture(scope="module")
def wired(wire: Wire) -> Iterator[WiredCluster]:
    with WiredCluster(wire) as cluster:
        yield cluster
        for mount in cluster.mounts:
            mount.unmount()
        cluster.wait_clean()


@pytest.fixture(scope="module")
def near(wired: WiredCluster) -> Mount:
    """On the servers' side: it sees what is really there."""
    return wired.mount("near")


@pytest.fixture(scope="module")
def links(wire: Wire, wired: WiredCluster) -> Iterator[list[BadLink]]:
    """One before the naming server, one before each node, which a mount at the far end goes through."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    with ExitStack() as stack:
        made: list[BadLink] = []
        for address in (wired.address, *(node.address for node in wired.nodes)):
            link = stack.enter_context(BadLink(address, wire.host, random.Random(seed + len(made))))
            stack.enter_context(wire.divert(address, link.address))
            made.append(link)
        yield made


@pytest.fixture(scope="module")
def far(wired: WiredCluster, wire: Wire, links: list[BadLink]) -> Mount:
    return wired.mount("far", through=wire.enter)


@pytest.fixture(autouse=True)
def healed(links: list[BadLink]) -> Iterator[None]:
    yield
    for link in links:
        link.trouble = Trouble()


@pytest.mark.fault("N7")
def test_a_node_whose_answers_drip_is_done_without(
    wired: WiredCluster, far: Mount, near: Mount, links: list[BadLink]
) -> None:
    """A byte a second: another replica is read, the others are written, and nobody waits long."""
    node_links = links[1:]

    def drip(link: BadLink) -> None:
        link.trouble = Trouble(answer_bytes_per_second=1)

    digest, writing = write_watched(far.path / "drips", FILE_MIB * MIB, lambda: drip(node_links[0]))
    assert sha256_of(near.path / "drips") == digest
    assert node_links[0].dripped > 0
    node_links[0].trouble = Trouble()
    for _ in range(READS_MAX):
        far.remount()
        before = {link: link.answered_bytes for link in node_links}
        dripped = sum(link.dripped for link in node_links)

        def drip_from_the_most_read(before: dict[BadLink, int] = before) -> None:
            drip(max(node_links, key=lambda one: one.answered_bytes - before[one]))

        found, reading = read_watched(far.path / "drips", drip_from_the_most_read)
        assert found == digest
        assert max(writing + reading) < STALL_SECONDS_MAX
        for link in node_links:
            link.trouble = Trouble()
        if sum(link.dripped for link in node_links) > dripped:
            return
    pytest.fail("no read was answered drop by drop")


@pytest.mark.fault("N7")
def test_a_naming_server_whose_answers_drip_is_a_stall_and_no_error(
    far: Mount, near: Mount, links: list[BadLink]
) -> None:
    load = Load(far.path / "naming-drips", threads=2)
    with load:
        wait_steps(load, 20)
        links[0].trouble = Trouble(answer_bytes_per_second=1)
        time.sleep(5)
        links[0].trouble = Trouble()
        wait_steps(load, 20)
    near.remount()
    load.check(near.path / "naming-drips")
    assert links[0].dripped > 0
    assert load.longest_seconds < 5 + STALL_SECONDS_MAX


@pytest.mark.fault("N6")
def test_flipped_bits_and_broken_connections_never_change_a_byte_or_a_name(
    wired: WiredCluster, far: Mount, near: Mount, links: list[BadLink]
) -> None:
    """On the way to every server, in both directions, heads and bodies: what is damaged is asked for again."""
    before = write_pattern(near.path / "read-over-bad-links", 24 * MIB)
    far.remount()
    load = Load(far.path / "flips", threads=2)
    with load:
        for link in links:
            link.trouble = Trouble(flips=0.02, resets=0.02)
        wait_steps(load, 300)
        for link in links:  # An extent of 8 MiB is 512 pieces, and all of them are to arrive.
            link.trouble = Trouble(flips=0.0005, resets=0.0005)
        digest = write_pattern(far.path / "written-over-bad-links", 24 * MIB)
        assert sha256_of(far.path / "read-over-bad-links") == before
    near.remount()
    load.check(near.path / "flips")
    assert sha256_of(near.path / "written-over-bad-links") == digest
    flips, resets = sum(link.flipped for link in links), sum(link.reset for link in links)
    print(f"{flips} flips, {resets} resets")
    assert min(flips, resets) > 10


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.fault("N6")
def test_a_link_of_1_mbit_with_delays_resets_and_flips_is_slow_but_right(
    wire: Wire, far: Mount, near: Mount, links: list[BadLink]
) -> None:
    """200 ms there and back, one piece in twenty resets its connection, one in fifty has a wrong bit."""
    (far.path / "slow").mkdir()
    contents, longest = {}, 0.0
    flips, resets = sum(link.flipped for link in links), sum(link.reset for link in links)
    for link in links:
        link.trouble = Trouble(delay_seconds=0.1, flips=0.02, resets=0.05)
    with wire.slow(1_000_000), Caller() as caller:
        for number in range(8):
            data = os.urandom(random.randrange(1, 60_000))
            began = time.monotonic()
            descriptor = caller.do("open", far.path / "slow" / "new", os.O_WRONLY | os.O_CREAT)
            caller.do("write", descriptor, data)
            caller.do("fsync", descriptor)
            caller.do("close", descriptor)
            caller.do("rename", far.path / "slow" / "new", far.path / "slow" / str(number))
            longest = max(longest, time.monotonic() - began)
            contents[str(number)] = data
        assert (far.path / "slow" / "0").read_bytes() == contents["0"]
    print(f"the slowest of these files took {longest:.1f} s")
    assert sum(link.flipped for link in links) > flips
    assert sum(link.reset for link in links) > resets
    near.remount()
    assert {path.name: path.read_bytes() for path in (near.path / "slow").iterdir()} == contents
