"""The changes of a Redis as its replicas are told them: where they end, and that they restore."""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hiredis
import pytest
import redis

from servers.naming.background.metadata_tail import Tail
from servers.naming.redis_feed import Feed, FeedBroken
from servers.naming.redis_snapshot import restore
from servers.naming.redis_stream import ChangeStream, NotAStream
from servers.naming.redis_url import Endpoint, RedisPlace
from tests.support.processes import free_port, wait_for

KEY = b"dcs:{v}"


def commands(*rows: tuple[bytes, ...]) -> bytes:
    return b"".join(hiredis.pack_command(row) for row in rows)  # type: ignore[arg-type]  # its stub says one-tuple


def change(number: int) -> bytes:
    return commands(
        (b"MULTI",), (b"SET", KEY + b":i:1", b"\r\n*1\r\n$4\r\nEXEC\r\n" * 20),
        (b"HSET", KEY + b":volume", b"files", b"3", b"seq", b"%d" % number), (b"EXEC",),
    )  # fmt: skip


def test_it_ends_between_transactions_however_it_arrives() -> None:
    chance = random.Random(4)
    parts = [change(number) for number in range(11, 31)]
    parts.insert(5, commands((b"PING",)))
    ends = set(itertools.accumulate(map(len, parts), initial=0))
    whole, taken = b"".join(parts), b""
    stream, at = ChangeStream(), 0
    while at < len(whole):
        step = chance.randint(1, 400)
        stream.feed(whole[at : at + step])
        at += step
        taken += stream.take()
        assert len(taken) == max(end for end in ends if end <= at)
    assert taken == whole


@pytest.mark.parametrize("data", [b"-ERR no\r\n", b"?", b"*0\r\n"])
def test_what_is_no_stream_is_refused(data: bytes) -> None:
    with pytest.raises(NotAStream):
        ChangeStream().feed(change(1) + data)


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Of two Redis."""
    found, servers = (free_port(), free_port()), []
    for port in found:
        (tmp_path / str(port)).mkdir()
        words = f"--port {port} --bind 127.0.0.1 --appendonly yes --repl-diskless-sync-delay 0"
        words += f" --enable-debug-command yes --shutdown-timeout 0 --dir {tmp_path}/{port}"
        command = ["redis-server", *words.split(), "--save", ""]
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    try:
        yield found
    finally:
        for server in servers:
            server.terminate()
            server.wait(10)


def client_of(port: int) -> redis.Redis:
    client = redis.Redis(port=port)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False

    wait_for(answers, "redis answers")
    return client


def write(client: redis.Redis, chance: random.Random, seq: int) -> None:
    key = f"dcs:{{v}}:k{chance.randint(0, 20)}"
    if chance.random() < 0.1:
        client.set(f"{key}:passing", chance.randbytes(10), px=600_000)
    with client.pipeline() as transaction:
        transaction.hset(key, chance.randbytes(3), chance.randbytes(chance.choice((10, 2000))))
        if chance.random() < 0.2:
            transaction.delete(f"dcs:{{v}}:k{chance.randint(0, 20)}")
        transaction.hset("dcs:{v}:volume", "seq", seq)
        transaction.execute()


async def drain(feed: Feed) -> None:
    while True:
        await feed.read(10)


def test_a_redis_restored_from_a_snapshot_and_the_changes_after_it_is_the_same(
    ports: tuple[int, int], tmp_path: Path
) -> None:
    """To the digest of all it holds; the feed says what there was before its snapshot, and ends with the Redis."""
    source, target = client_of(ports[0]), client_of(ports[1])
    target.set("left", "over")
    chance = random.Random(7)
    for seq in range(1, 301):
        write(source, chance, seq)
    rdb, changes = tmp_path / "rdb", tmp_path / "changes"
    place, endpoint = RedisPlace("one"), Endpoint("127.0.0.1", ports[0])
    digests: list[bytes] = []

    async def follow() -> None:
        feed = await Feed.open(place, endpoint, KEY)
        assert feed.seq == 300
        rdb.write_bytes(b"".join([piece async for piece in feed.snapshot()]))
        assert rdb.read_bytes().startswith(b"REDIS")
        tail, stored = Tail(300, 0, feed), b""
        for seq in range(301, 601):
            write(source, chance, seq)
            if seq % 100 == 0:
                source.hset("dcs:{v}:volume", "mark", f"the mark {seq}")
                assert tail.is_due(seq)
                await tail.fill(b"the mark %d" % seq, seq)
                while tail.waiting:
                    assert tail.stored < seq
                    stored += tail.waiting[0]
                    tail.is_stored()
                assert tail.stored == seq
                assert not tail.is_due(seq)
        stream = ChangeStream()
        stream.feed(stored + change(601)[:-5])
        changes.write_bytes(stream.take())
        digests.append(source.execute_command("DEBUG", "DIGEST"))
        source.shutdown(nosave=True)
        with pytest.raises(FeedBroken):
            await drain(feed)
        feed.close()
        await restore(place, Endpoint("127.0.0.1", ports[1]), rdb, changes)

    asyncio.run(follow())
    assert target.execute_command("DEBUG", "DIGEST") == digests[0]
    assert target.hget("dcs:{v}:volume", "seq") == b"600"
    assert target.info("replication")["role"] == "master"


def test_where_replicas_are_counted_only_a_replica_is_followed(ports: tuple[int, int]) -> None:
    """One that has just become the primary would show us to the Sentinels, which forget no replica."""
    primary = client_of(ports[0])
    place, endpoint = RedisPlace("sentinel"), Endpoint("127.0.0.1", ports[0])
    with pytest.raises(FeedBroken, match="no replica any more"):
        asyncio.run(Feed.open(place, endpoint, KEY))
    assert primary.info("replication")["connected_slaves"] == 0
