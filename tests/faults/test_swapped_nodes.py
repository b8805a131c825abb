"""Two storage nodes swap their addresses: whoever still knows the old ones never takes the one for the other."""

from __future__ import annotations

import os
import threading

import pytest

from tests.support.cluster import Cluster
from tests.support.processes import wait_for

MIB = 1024 * 1024


@pytest.mark.timeout(120)
@pytest.mark.fault("S18")
@pytest.mark.long
def test_nodes_that_swap_addresses_are_never_confused() -> None:
    """No error, no replica is called missing or damaged, and what is written meanwhile is where the metadata says."""
    with Cluster(4, CHUNK_SIZE=str(MIB), REPLICATION_FACTOR="2") as cluster:
        top = cluster.mount().path
        contents = {f"f{n}": os.urandom(MIB // 2 + n) for n in range(24)}
        for name, data in contents.items():
            (top / name).write_bytes(data)
        written: list[str] = []
        over = threading.Event()

        def write_on() -> None:
            while not over.is_set():
                name = f"meanwhile{len(written)}"
                contents[name] = os.urandom(10_000)
                (top / name).write_bytes(contents[name])
                written.append(name)

        one, other = cluster.nodes[:2]
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("1")
        writer = threading.Thread(target=write_on)
        writer.start()
        try:
            for node in (one, other):
                node.stop()
            ports = one.environment["PORT"], other.environment["PORT"]
            other.environment["PORT"], one.environment["PORT"] = ports
            one.address, other.address = other.address, one.address
            for node in (one, other):
                node.start(wait=False)
            for _ in range(3):
                for name in [name for name in contents if name.startswith("f")]:
                    assert (top / name).read_bytes() == contents[name]
            before = len(written)
            wait_for(lambda: len(written) > before + 50, "the writer goes on")
        finally:
            over.set()
            writer.join()
        cluster.wait_alive(4)
        assert cluster.damage_met() == 0
        for name, data in contents.items():
            assert (top / name).read_bytes() == data
        cluster.dcs("fsck", "--data", "--wait", "60")
