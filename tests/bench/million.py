"""What background jobs cost a metadata call in a volume with many extents.

    python -m tests.bench.million [EXTENTS [JOB...]]

Fills a real Redis, its log synced before each answer, with EXTENTS (1,000,000) files of one extent each, and then asks
the naming server for one change of an attribute after the other while a job walks over all of it as fast as it may;
prints the time that a change took, in microseconds. The survey of all files is the naming server's own, begun because
an empty node is drained, and because one of the others died: none of its copies is made elsewhere, so that the survey
is what is measured. The judgement of what a node holds is asked of Redis as the garbage collector does, with its counts
and rests; and Redis's memory is copied as for a snapshot. `none` is measured again before each, because a machine's
mood changes.
"""

from __future__ import annotations

import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import msgpack
import redis

from servers.client.naming import read_reply
from servers.naming.background.garbage import SIGHT_EXTENTS, STRAY_TURNS
from servers.naming.background.strays import LOOKED_AT_ONCE
from servers.naming.service import rest_after
from servers.protocol.ids import NodeNumber, SessionNumber, extent_id
from servers.protocol.naming_api import OPS_PATH, Operation, pack_arguments, pack_batch, pack_nodes, unpack_replies
from tests.support.cluster import Cluster, Node
from tests.support.processes import wait_for
from tests.support.volume import Volume

NODES = [NodeNumber(number) for number in range(1, 5)]
FIRST_INODE = 1000
WRITER = SessionNumber(77)
FILLED_AT_ONCE = 5000
NOTHING_SECONDS = 15.0
JOB_SECONDS = 45.0
"""So long each job is watched, at most: a walk over all takes minutes, and the lease of a session a minute."""
PAUSE_SECONDS = 0.002
LOOK_SECONDS = 0.5
SURVEY_SECONDS_MAX = 1200.0
NEVER = str(10**6)


def main() -> None:
    extents = int(sys.argv[1] if len(sys.argv) > 1 else "1000000")
    usual = {"BACKGROUND_INTERVAL_SECONDS": "1", "GARBAGE_INTERVAL_SECONDS": NEVER, "REBALANCE_INTERVAL_SECONDS": NEVER}
    made = Cluster(nodes=len(NODES) + 1, REPAIR_WAIT_SECONDS=NEVER, DEAD_AFTER_SECONDS="8", **usual)
    with made as cluster, redis.Redis(port=cluster.redis_port) as client:
        volume = Volume(client, "main")
        volume.uuid = client.hget(f"{volume.key}:volume", "uuid").decode()
        fill(volume, extents)
        print(f"{extents} extents, {client.info('memory')['used_memory'] >> 20} MiB in Redis")
        empty, *_, lost = sorted(cluster.nodes, key=lambda node: node.number, reverse=True)
        jobs: dict[str, Callable[[], Iterator[None]]] = {
            "survey": lambda: survey(cluster, lambda: cluster.dcs("drain", str(empty.number))),
            "survey, one of four nodes dead": lambda: survey(cluster, lambda: die(cluster, lost)),
            "garbage": lambda: judge(volume, extents),
            "snapshot": lambda: snapshot(client),
        }
        for name in sys.argv[2:] or jobs:
            job = jobs[name]
            wait_for(lambda: not is_surveying(cluster), "no survey is under way", SURVEY_SECONDS_MAX)
            show("none", cluster, nothing)
            show(name, cluster, job)


def fill(volume: Volume, extents: int) -> None:
    session, chance = volume.session(), random.Random(1)
    template = session.create(1, b"template")
    session.commit(template.ino, {0: [session.segment(0, 1000)]})
    inode = volume.client.get(f"{volume.key}:i:{template.ino}")
    pipe = volume.client.pipeline(transaction=False)
    for n in range(extents):
        segment = [0, extent_id(WRITER, n), 0, 1000, pack_nodes(sorted(chance.sample(NODES, 3)))]
        pipe.set(f"{volume.key}:i:{FIRST_INODE + n}", inode)
        pipe.hset(f"{volume.key}:m:{FIRST_INODE + n}", "0", msgpack.packb(segment, use_bin_type=False))
        pipe.hset(f"{volume.key}:x:{WRITER}", str(n), msgpack.packb([FIRST_INODE + n, 0]))
        if len(pipe) >= FILLED_AT_ONCE:
            pipe.execute()
    pipe.execute()


def show(name: str, cluster: Cluster, job: Callable[[], Iterator[None]]) -> None:
    """Times changes while the job's steps go on, from the first until its end or JOB_SECONDS are over."""
    over, took, steps = threading.Event(), list[float](), job()
    caller = threading.Thread(target=change, args=(cluster, over, took))
    next(steps)
    caller.start()
    began = time.monotonic()
    for _ in steps:
        if time.monotonic() - began > JOB_SECONDS:
            break
    over.set()
    caller.join()
    cuts = statistics.quantiles((1e6 * seconds for seconds in took), n=100)
    print(f"{name:32s} median {cuts[49]:6.0f}  mean {1e6 * statistics.mean(took):6.0f}  p99 {cuts[98]:6.0f}  "
          f"longest {1e6 * max(took):6.0f} us, of {len(took)}", flush=True)  # fmt: skip


def change(cluster: Cluster, over: threading.Event, took: list[float]) -> None:
    """One attribute of one file, again and again, through the naming server."""
    naming = HTTPConnection(cluster.address, timeout=JOB_SECONDS)
    headers = {"authorization": f"Bearer {cluster.secret}", "content-type": "application/msgpack"}

    def ask(verb: str, session: SessionNumber, n: int, **arguments: Any) -> list[Any]:
        naming.request("POST", OPS_PATH, pack_batch(session, [Operation(verb, n, pack_arguments(arguments))]), headers)
        return read_reply(verb, unpack_replies(naming.getresponse().read())[0])

    session, n = SessionNumber(ask("session_open", SessionNumber(0), 0, host="bench", what="bench")[0]), 0
    while not over.is_set():
        n, began = n + 1, time.perf_counter()
        ask("setattr", session, n, ino=FIRST_INODE, mode=0o600 + n % 2)
        took.append(time.perf_counter() - began)
        time.sleep(PAUSE_SECONDS)
    naming.close()


def nothing() -> Iterator[None]:
    yield
    time.sleep(NOTHING_SECONDS)


def survey(cluster: Cluster, begin: Callable[[], object]) -> Iterator[None]:
    begin()
    wait_for(lambda: is_surveying(cluster), "a survey has begun", JOB_SECONDS)
    while is_surveying(cluster):
        yield
        time.sleep(LOOK_SECONDS)


def is_surveying(cluster: Cluster) -> bool:
    return bool(cluster.status()["repair"]["surveying"])


def die(cluster: Cluster, node: Node) -> None:
    node.kill()
    cluster.wait_state(node, "dead")


def judge(volume: Volume, extents: int) -> Iterator[None]:
    for first in range(0, extents, SIGHT_EXTENTS):
        names = [extent_id(WRITER, n) for n in range(first, first + SIGHT_EXTENTS)]
        ask_gently(volume, "sight", extents=names)
        yield
        some = [name for name in names if name[-1] % STRAY_TURNS == 0]
        for at in range(0, len(some), LOOKED_AT_ONCE):
            ask_gently(volume, "strays", node=1, extents=some[at : at + LOOKED_AT_ONCE])
            yield


def ask_gently(volume: Volume, verb: str, **arguments: Any) -> list[Any]:
    """As the naming server's Service."""
    began = time.monotonic()
    results = volume.call(verb, **arguments)
    time.sleep(rest_after(time.monotonic() - began))
    return results


def snapshot(client: redis.Redis) -> Iterator[None]:
    client.bgsave()
    yield
    wait_for(lambda: not client.info("persistence")["rdb_bgsave_in_progress"], "the copy is made", JOB_SECONDS)


if __name__ == "__main__":
    main()
