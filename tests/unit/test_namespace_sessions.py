"""Sessions, op ids, open files, stubs, SAFE mode and lost volumes: who may change what, and how often."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from servers.client.naming import SESSION_LOST, TOO_OLD
from servers.protocol.geometry import overlay
from servers.protocol.limits import OP_WINDOW
from servers.protocol.naming_api import (
    MUTATIONS,
    READS,
    Attributes,
    pack_arguments,
    pack_nodes,
    pack_segments,
    unpack_attributes,
)
from tests.support.check_volume import check_volume
from tests.support.volume import NODES, Session, Volume

OPEN = {"chunk_size": 1024, "replicas": 3, "uid": 0, "gid": 0, "lease_ms": 60_000, "orphan_grace_ms": 0,
        "condemned_grace_ms": 0, "outage_ms": 3_600_000, "uuid": "f" * 32}  # fmt: skip

HEARTBEAT = {
    "rack": "", "space": "s", "used": 0, "free": 1, "total": 1, "silence_ms": 6000, "calm_ms": 600_000,
}  # fmt: skip


def is_there(volume: Volume, ino: int) -> bool:
    return volume.errno("getattr", ino=ino) == 0


def test_a_refusal_sent_twice_is_the_same_refusal(volume: Volume, session: Session) -> None:
    """Also when what it was about is different by then: the first answer was the answer."""
    arguments = pack_arguments({"parent": 1, "name": b"f"})
    first = volume.raw("unlink", session.number, 50, arguments)
    assert msgpack.unpackb(first) == [errno.ENOENT]
    other = volume.session()
    other.create(1, b"f")
    assert volume.raw("unlink", session.number, 50, arguments) == first
    assert volume.names() == [b"f"]


def test_the_number_decides_not_the_arguments(volume: Volume, session: Session) -> None:
    """A number that was used does nothing else, whatever is asked under it."""
    made = session.mkdir(1, b"d")
    reply = volume.reply("mkdir", session.number, session.n, parent=1, name=b"other", mode=0, uid=0, gid=0)
    assert reply[1] == made.ino
    assert volume.names() == [b"d"]


def test_numbers_may_come_in_any_order(volume: Volume, session: Session) -> None:
    more = {"parent": 1, "mode": 0o755, "uid": 0, "gid": 0}
    for n in (5, 3, 4, 1, 2):
        assert volume.reply("mkdir", session.number, n, name=b"%d" % n, **more)[0] == 0
    for n in (1, 2, 3, 4, 5):
        assert volume.reply("mkdir", session.number, n, name=b"again %d" % n, **more)[0] == 0
    assert len(volume.names()) == 5


def test_a_number_too_far_behind_is_refused(volume: Volume, session: Session) -> None:
    """What it did may be forgotten, so nobody can tell whether it was done."""
    more = {"parent": 1, "mode": 0o755, "uid": 0, "gid": 0}
    for n in (5, 1, OP_WINDOW, OP_WINDOW + 5):
        assert volume.reply("mkdir", session.number, n, name=b"%d" % n, **more)[0] == 0
    assert volume.reply("mkdir", session.number, 5, name=b"5", **more) == [TOO_OLD]
    assert volume.reply("mkdir", session.number, 6, name=b"6", **more)[0] == 0
    assert len(volume.names()) == 5


def test_what_was_given_up_is_not_done_late(volume: Volume, session: Session) -> None:
    """A commit whose writer had no answer hangs somewhere while the next one overwrites a part of it: when it comes
    after all, it does not bring back what was overwritten. What is done by then stays done."""
    made = session.create(1, b"f")
    old, new = session.segment(0, 100), session.segment(50, 10)
    late = {"ino": made.ino, "chunks": [0, pack_segments([old])], "end": 100, "synced": True}
    parts = overlay([old, new])
    session.commit(made.ino, {0: parts}, given_up=[500, 501])
    for number in (500, 501):
        assert volume.reply("commit", session.number, number, **late) == [errno.EIO]
    assert volume.chunks(made.ino) == {0: parts}
    done = session.n
    session.call("setxattr", ino=made.ino, name=b"user.a", value=b"1", flags=0, given_up=[done])
    assert volume.reply("commit", session.number, done, **late)[0] == 0, "it was done, and has its answer"
    assert volume.chunks(made.ino) == {0: parts}


def test_what_is_given_up_has_to_be_numbers(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    for nonsense in ([0], [-1], ["x"], [1.5], "x", 7, list(range(1, OP_WINDOW + 2))):
        session.call("setxattr", ino=made.ino, name=b"user.a", value=b"1", flags=0, given_up=nonsense)
    assert volume.reply("mkdir", session.number, 1000, parent=1, name=b"d", mode=0, uid=0, gid=0)[0] == 0


def test_results_are_kept_for_the_last_mutations_only(volume: Volume, session: Session) -> None:
    for n in range(1, OP_WINDOW + 200):
        volume.reply("setxattr", session.number, n, ino=1, name=b"a", value=b"%d" % n, flags=0)
    assert volume.client.hlen(f"{volume.key}:op:{session.number}") == OP_WINDOW


def test_every_mutation_wants_a_session_that_lives(volume: Volume) -> None:
    for verb in sorted(MUTATIONS):
        assert volume.reply(verb, 77, 1, ino=1, parent=1) == [SESSION_LOST], verb
    assert volume.reply("session_renew", 77) == [SESSION_LOST]


def test_a_lapsed_session_changes_nothing(make_volume: Callable[..., Volume]) -> None:
    """From the very millisecond, before any job has looked; its commits too."""
    volume = make_volume()
    session, other = volume.session(), volume.session()
    made = session.create(1, b"f")
    volume.client.zadd(f"{volume.key}:sessions", {str(session.number): 1})
    segment = session.segment(0, 10)
    commit = {"ino": made.ino, "chunks": [0, pack_segments([segment])], "end": 10, "synced": True}
    assert volume.reply("commit", session.number, 90, **commit) == [SESSION_LOST]
    assert session.errno("unlink", parent=1, name=b"f") == SESSION_LOST
    assert volume.reply("session_renew", session.number) == [SESSION_LOST]
    assert volume.call("expire_sessions", count=10) == [1]
    assert volume.reply("commit", session.number, 90, **commit) == [SESSION_LOST]
    other.unlink(1, b"f")
    volume.reclaim()
    assert not is_there(volume, made.ino)


def test_a_result_outlives_the_lease_as_long_as_the_session_is_known(volume: Volume, session: Session) -> None:
    """A retry of what was done gets its answer even when the lease ran out in between."""
    made = session.mkdir(1, b"d")
    volume.client.zadd(f"{volume.key}:sessions", {str(session.number): 1})
    assert volume.reply("mkdir", session.number, session.n, parent=1, name=b"d")[1] == made.ino


def test_renewing_moves_the_lease_and_tells_the_facts(volume: Volume, session: Session) -> None:
    before = volume.client.zscore(f"{volume.key}:sessions", session.number)
    time.sleep(0.002)
    (facts,) = volume.call("session_renew", session.number)
    assert volume.client.zscore(f"{volume.key}:sessions", session.number) > before
    assert facts[b"uuid"] == volume.uuid.encode()
    assert (facts[b"chunk_size"], facts[b"replicas"], facts[b"safe"]) == (1024, 3, 0)


def test_closing_a_session_closes_its_files(volume: Volume, session: Session) -> None:
    """And forgets all of it; a second close, and one of a session that never was, do nothing."""
    made = session.create(1, b"f")
    session.unlink(1, b"f")
    for number in (session.number, session.number, 12345):
        assert volume.call("session_close", number) == []
    volume.reclaim()
    assert not is_there(volume, made.ino)
    assert not volume.client.keys(f"{volume.key}:op:*")
    assert volume.status()["sessions"] == 0


def test_a_session_with_very_many_open_files_is_forgotten_in_steps(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume(EXTENTS_PER_CALL_MAX=10)
    session = volume.session()
    for i in range(35):
        session.create(1, b"%d" % i)
    volume.call("session_close", session.number)
    check_volume(volume)
    assert volume.status()["sessions"] == 1
    while volume.status()["sessions"]:
        volume.call("expire_sessions", count=10)
        check_volume(volume)
    assert not volume.client.keys(f"{volume.key}:o:*")


def test_no_lease_runs_out_while_nobody_could_renew_it(volume: Volume, session: Session) -> None:
    """The first who is back, a client, a job or a new connection, finds the session alive."""
    settings = {**volume.settings, "outage_ms": 15_000}
    volume.call("volume_open", **settings)
    made, verbs = session.create(1, b"f"), (("expire_sessions", {"count": 10}), ("volume_open", settings))
    for verb, more in verbs:
        now = int(time.time() * 1000)
        volume.client.hset(f"{volume.key}:volume", "alive_ms", now - 120_000)
        volume.client.zadd(f"{volume.key}:sessions", {str(session.number): now - 100_000})
        session.setattr(made.ino, mode=0o600)
        volume.call(verb, **more)
        assert volume.call("expire_sessions", count=10) == [0]
        session.setattr(made.ino, mode=0o644)
        assert volume.client.zscore(f"{volume.key}:sessions", session.number) > now
    volume.client.hset(f"{volume.key}:volume", "alive_ms", now - 120_000)
    volume.client.zadd(f"{volume.key}:sessions", {str(session.number): now - 120_001})
    assert session.errno("setattr", ino=made.ino, mode=0) == SESSION_LOST
    volume.call("session_close", session.number)


def test_an_unlinked_file_lives_while_anybody_has_it_open(volume: Volume, session: Session) -> None:
    other = volume.session()
    made = session.create(1, b"f")
    other.call("opens", opened=[made.ino], released=[])
    session.unlink(1, b"f")
    session.call("release", ino=made.ino)
    volume.reclaim()
    other.commit(made.ino, {0: [other.segment(0, 10)]})
    assert volume.chunks(made.ino)
    other.call("opens", opened=[], released=[made.ino])
    volume.reclaim()
    assert not is_there(volume, made.ino)
    assert len(volume.condemned()) == 1


def test_an_unlinked_file_that_nobody_opened_lives_for_the_grace(make_volume: Callable[..., Volume]) -> None:
    """So that an open on its way finds it."""
    volume = make_volume()
    volume.call("volume_open", **{**volume.settings, "orphan_grace_ms": 100})
    session = volume.session()
    made = session.closed(1, b"f")
    session.unlink(1, b"f")
    volume.reclaim()
    assert is_there(volume, made.ino)
    session.call("open", ino=made.ino, chunks=1)
    time.sleep(0.11)
    volume.reclaim()
    assert is_there(volume, made.ino)
    session.call("release", ino=made.ino)
    time.sleep(0.11)
    volume.reclaim()
    assert not is_there(volume, made.ino)


def test_a_release_that_comes_late_does_not_close_what_was_opened_after_it(volume: Volume, session: Session) -> None:
    made = session.closed(1, b"f")
    session.unlink(1, b"f")
    for release in ({"verb": "release", "ino": made.ino}, {"verb": "opens", "opened": [], "released": [made.ino]}):
        verb = str(release.pop("verb"))
        late, opened = session.next_n(), session.next_n()
        volume.call("open", session.number, opened, ino=made.ino, chunks=0)
        volume.call(verb, session.number, late, **release)
        volume.reclaim()
        assert is_there(volume, made.ino), verb
    session.call("release", ino=made.ino)
    volume.reclaim()
    assert not is_there(volume, made.ino)


def test_an_open_that_comes_twice_opens_once(volume: Volume, session: Session) -> None:
    """Its answer is made again, not kept: it may be long."""
    made = session.closed(1, b"f")
    session.commit(made.ino, {0: [session.segment(0, 10)]})
    n, arguments = session.next_n(), pack_arguments({"ino": made.ino, "chunks": 4})
    first = volume.raw("open", session.number, n, arguments)
    session.call("release", ino=made.ino)
    assert volume.raw("open", session.number, n, arguments) == first
    assert not volume.client.exists(f"{volume.key}:o:{made.ino}")
    assert len(volume.client.hget(f"{volume.key}:op:{session.number}", n)) == 8
    assert volume.call("look", ino=made.ino, chunks=4) == msgpack.unpackb(first, raw=True)[1:]
    for verb in ("open", "look"):
        assert volume.reply(verb, session.number, session.next_n(), ino=99, chunks=0) == [errno.ESTALE]


def test_opens_tells_what_is_gone(volume: Volume, session: Session) -> None:
    made = session.closed(1, b"f")
    assert session.call("opens", opened=[made.ino, 98, 99], released=[55]) == [[98, 99]]
    assert session.errno("opens", opened=["x"], released=[]) == errno.EINVAL
    assert session.errno("opens", opened=[], released=[1.5]) == errno.EINVAL
    assert session.errno("opens", opened=[1] * 5000, released=[]) == errno.E2BIG


def test_a_stub_is_seen_by_nobody_until_it_is_published(volume: Volume, session: Session) -> None:
    stub, _ = session.call("stub", mode=0o640, uid=1, gid=2, chunk_size=4096)
    segment = session.segment(0, 4096)
    session.commit(stub, {0: [segment]})
    volume.reclaim()
    assert volume.names() == []
    assert volume.status()["files"] == 0
    blob, replaced = session.call("publish", ino=stub, parent=1, name=b"f", size=5000, overwrite=False)
    after = unpack_attributes(stub, blob)
    assert (after.size, after.nlink, after.chunk_size, after.mode & 0o777, replaced) == (5000, 1, 4096, 0o640, 0)
    assert volume.names() == [b"f"]
    assert volume.chunks(stub) == {0: [segment]}


def test_a_stub_is_stored_as_the_directory_has_it_where_it_is_to_be(volume: Volume, session: Session) -> None:
    """Chunk size and copies; both of the top directory where no directory is named, or it is none, or gone."""
    directory, file, gone = session.mkdir(1, b"d"), session.create(1, b"f"), session.mkdir(1, b"gone")
    for name, value in ((b"user.dcs.chunk_size", b"4096"), (b"user.dcs.replicas", b"2")):
        for ino in (directory.ino, gone.ino):
            session.call("setxattr", ino=ino, name=name, value=value, flags=0)
    session.call("rmdir", parent=1, name=b"gone")
    root = volume.attributes(1)

    def stub(**more: object) -> Attributes:
        ino, blob = session.call("stub", mode=0o640, uid=1, gid=2, **more)
        return unpack_attributes(ino, blob)

    made = stub(parent=directory.ino)
    assert (made.chunk_size, made.replicas) == (4096, 2)
    chosen = stub(parent=directory.ino, chunk_size=8192)
    assert (chosen.chunk_size, chosen.replicas) == (8192, 2)
    for other in ({}, {"parent": file.ino}, {"parent": 99}, {"parent": gone.ino}, {"parent": 1}):
        made = stub(**other)
        assert (made.chunk_size, made.replicas) == (root.chunk_size, root.replicas), other


def test_the_chunk_size_of_a_stub_stays_whatever_its_directory_becomes(volume: Volume, session: Session) -> None:
    directory = session.mkdir(1, b"d")
    stub, _ = session.call("stub", mode=0o640, uid=1, gid=2, parent=directory.ino)
    session.call("setxattr", ino=directory.ino, name=b"user.dcs.chunk_size", value=b"4096", flags=0)
    session.call("publish", ino=stub, parent=directory.ino, name=b"f", size=0, overwrite=False)
    assert volume.attributes(stub).chunk_size == volume.attributes(1).chunk_size != 4096


def test_a_published_file_can_be_deleted_whoever_made_it(volume: Volume, session: Session) -> None:
    """The stub was open for its session; the file is not."""
    stub, _ = session.call("stub", mode=0o640, uid=1, gid=2)
    session.call("publish", ino=stub, parent=1, name=b"f", size=0, overwrite=False)
    session.unlink(1, b"f")
    volume.reclaim()
    assert not is_there(volume, stub)


def test_publishing_refuses_what_cannot_be(volume: Volume, session: Session) -> None:
    stub, _ = session.call("stub", mode=0o640, uid=1, gid=2)
    named, directory = session.create(1, b"taken"), session.mkdir(1, b"d")
    session.commit(stub, {0: [session.segment(0, 10)]})
    version = volume.attributes(stub).data_version
    good: dict[str, Any] = {"ino": stub, "parent": 1, "name": b"n", "size": 10, "overwrite": False}
    for change, wanted in (
        ({"ino": 99}, errno.ESTALE), ({"ino": named.ino}, errno.EINVAL), ({"ino": directory.ino}, errno.EINVAL),
        ({"parent": named.ino}, errno.ENOTDIR), ({"parent": 99}, errno.ENOENT), ({"name": b""}, errno.EINVAL),
        ({"name": b"x" * 256}, errno.ENAMETOOLONG), ({"size": 9}, errno.EINVAL), ({"size": 2**53}, errno.EFBIG),
        ({"name": b"taken"}, errno.EEXIST), ({"name": b"d", "overwrite": True}, errno.EISDIR),
        ({"version": version - 1}, errno.EAGAIN),
    ):  # fmt: skip
        assert session.errno("publish", **{**good, **change}) == wanted, change
    assert session.call("publish", **{**good, "name": b"taken", "overwrite": 1, "version": version})[1] == named.ino
    for chunk_size in (1000, 512, 2**27):
        assert session.errno("stub", mode=0, uid=0, gid=0, chunk_size=chunk_size) == errno.EINVAL
    commit = {"ino": stub, "chunks": [], "end": 20, "synced": True, "unpublished": True}
    assert session.errno("commit", **commit) == errno.EEXIST


def test_stubs_end_with_their_session_or_after_their_time(volume: Volume, session: Session) -> None:
    mine, _ = session.call("stub", mode=0o640, uid=1, gid=2)
    lasting, _ = session.call("stub", mode=0o640, uid=1, gid=2, lasts_ms=3_600_000)
    passing, _ = session.call("stub", mode=0o640, uid=1, gid=2, lasts_ms=0)
    volume.reclaim()
    assert [is_there(volume, i) for i in (mine, lasting, passing)] == [True, True, False]
    volume.call("session_close", session.number)
    volume.reclaim()
    assert [is_there(volume, i) for i in (mine, lasting)] == [False, True]


# SAFE mode and volumes that are not there.


def enter_safe_mode(volume: Volume) -> None:
    volume.client.hset(f"{volume.key}:volume", "safe", "a test")


def test_safe_mode_changes_nothing_and_reads_on(volume: Volume, session: Session) -> None:
    """EROFS for every mutation but opening and closing; the same number works once it is over."""
    made = session.create(1, b"f")
    enter_safe_mode(volume)
    for verb in sorted(MUTATIONS - {"open", "opens", "release"}):
        assert session.errno(verb, ino=made.ino, parent=1) == errno.EROFS, verb
    again = session.next_n()
    assert volume.reply("unlink", session.number, again, parent=1, name=b"f") == [errno.EROFS]
    session.call("release", ino=made.ino)
    session.call("open", ino=made.ino, chunks=0)
    assert volume.names() == [b"f"]
    assert volume.call("resolve", path=[b"f"])[0] == made.ino
    assert volume.errno("resolve", path=[b"lost"]) == errno.EIO, "it may be what is missing"
    assert volume.call("session_renew", session.number)[0][b"safe"] == 1
    assert volume.status()["safe"] == b"a test"
    volume.client.hdel(f"{volume.key}:volume", "safe")
    assert volume.reply("unlink", session.number, again, parent=1, name=b"f")[0] == 0


def test_safe_mode_deletes_nothing(volume: Volume, session: Session) -> None:
    """Not condemned extents, not garbage, not orphans, not sessions."""
    made, lapsed = session.closed(1, b"f"), volume.session()
    session.commit(made.ino, {0: [session.segment(0, 10)], 1: [session.segment(0, 10)]})
    session.setattr(made.ino, size=1024)
    garbage = lapsed.new_extent()
    volume.client.zadd(f"{volume.key}:sessions", {str(lapsed.number): 1})
    session.unlink(1, b"f")
    enter_safe_mode(volume)
    before = {key: volume.client.dump(key) for key in volume.client.keys(f"{volume.key}:*")}
    assert volume.call("reap", count=10) == [0, 0]
    assert volume.call("condemned", count=10) == []
    assert volume.call("collect", extents=[garbage]) == []
    assert volume.call("expire_sessions", count=10) == [0]
    assert {key: volume.client.dump(key) for key in volume.client.keys(f"{volume.key}:*")} == before


@pytest.mark.parametrize("lost", ["nothing is there", "another volume is there"])
def test_a_lost_volume_says_neither_yes_nor_no(volume: Volume, session: Session, lost: str) -> None:
    """Reads are EIO, never ENOENT; mutations EROFS; nothing is made and nothing deleted."""
    keys = volume.client.keys(f"{volume.key}:*")
    kept = {key: volume.client.dump(key) for key in keys}
    if lost == "nothing is there":
        volume.client.delete(*keys)
    else:
        volume.client.hset(f"{volume.key}:volume", "uuid", "f" * 32)
    now = {key: volume.client.dump(key) for key in volume.client.keys(f"{volume.key}:*")}
    for verb in sorted(READS):
        assert volume.errno(verb, ino=1, parent=1) == errno.EIO, verb
    for verb in sorted(MUTATIONS):
        assert session.reply(verb) == [errno.EROFS], verb
    for verb in ("session_open", "session_renew", "session_close", "expire_sessions", "reap", "condemned", "deleted",
                 "known", "collect", "heartbeat", "nodes", "drain", "status", "damage", "sound", "healed", "holds",
                 "facts", "doubted", "believed"):  # fmt: skip
        assert volume.errno(verb) == errno.EIO, verb
    assert volume.errno("volume_open", **{**volume.settings, "make": False}) == errno.ESTALE
    assert {key: volume.client.dump(key) for key in volume.client.keys(f"{volume.key}:*")} == now
    for key, value in kept.items():
        volume.client.restore(key, 0, value, replace=True)


def test_opening_a_volume_makes_it_once(volume: Volume) -> None:
    """Two naming servers that start together work with the same one."""
    volume.uuid = ""
    found, _, safe, made = volume.call("volume_open", **{**volume.settings, "uuid": "a" * 32})
    assert (found, safe, made) == (b"0123456789abcdef0123456789abcdef", b"", 0)
    volume.uuid = found.decode()
    root = volume.attributes(1)
    assert (root.mode, root.nlink, root.parent) == (0o040755, 2, 1)


def test_metadata_that_went_back_is_noticed(volume: Volume, session: Session) -> None:
    """By a naming server or a storage node that knows of a later change: SAFE mode, and the reason is told."""
    seq = volume.status()["seq"]
    assert volume.call("volume_open", **{**volume.settings, "seq": seq})[2] == b""
    found = volume.call("volume_open", **{**volume.settings, "seq": seq + 1})[2]
    assert b"was seen" in found
    assert session.errno("mkdir", parent=1, name=b"d", mode=0, uid=0, gid=0) == errno.EROFS
    volume.client.hdel(f"{volume.key}:volume", "safe")
    node = {"uuid": "n", "address": "a:1", **HEARTBEAT}
    number, uuid, told, safe, _ = volume.call("heartbeat", **node, volume="", seq=0)
    assert (number, uuid, told, safe) == (1, volume.uuid.encode(), seq, b"")
    assert volume.errno("heartbeat", **node, volume="other", seq=0) == errno.EXDEV
    assert volume.call("heartbeat", **node, volume=volume.uuid, seq=seq + 9)[3] != b""
    assert session.errno("mkdir", parent=1, name=b"d", mode=0, uid=0, gid=0) == errno.EROFS


def test_nodes_keep_their_numbers(volume: Volume) -> None:
    def beat(uuid: str, address: str) -> int:
        return int(volume.call("heartbeat", uuid=uuid, address=address, volume="", seq=0, **HEARTBEAT)[0])

    assert [beat("a", "x:1"), beat("b", "x:2"), beat("a", "y:9"), beat("c", "x:1")] == [1, 2, 1, 3]
    now_ms, *rows = volume.call("nodes")
    records = {int(n): msgpack.unpackb(r) for n, r in zip(rows[::3], rows[1::3], strict=True)}
    assert records[1][1] == "y:9"
    assert now_ms >= records[3][7]


def test_the_returns_of_a_node_are_counted_and_forgotten_when_it_was_calm(volume: Volume) -> None:
    """Silence is told from its heartbeats; nobody listening is no silence."""

    def beat_after(silent_ms: int, steady_ms: int = 0) -> int:
        record = msgpack.unpackb(volume.client.hget(f"{volume.key}:nodes", 1))
        record[7] -= silent_ms
        record[8] -= silent_ms + steady_ms
        volume.client.hset(f"{volume.key}:nodes", 1, msgpack.packb(record))
        volume.call("heartbeat", uuid="n", address="a:1", volume="", seq=0, **HEARTBEAT)
        return int(msgpack.unpackb(volume.client.hget(f"{volume.key}:nodes", 1))[9])

    volume.call("heartbeat", uuid="n", address="a:1", volume="", seq=0, **HEARTBEAT)
    assert [beat_after(ms) for ms in (2000, 7000, 5000, 40_000)] == [0, 1, 1, 2]
    assert beat_after(7000, steady_ms=601_000) == 1
    volume.client.hset(f"{volume.key}:volume", "alive_ms", 1)
    assert beat_after(4_000_000) == 1


def test_a_node_is_drained_until_it_is_not(volume: Volume) -> None:
    volume.call("heartbeat", uuid="n", address="a:1", volume="", seq=0, **HEARTBEAT)
    assert volume.errno("drain", node=2, drain=True) == errno.ENOENT
    volume.call("drain", node=1, drain=True)
    (since_ms,) = volume.call("nodes")[3::3]
    volume.call("drain", node=1, drain=True)
    assert volume.call("nodes")[3::3] == [since_ms] != [0]
    volume.call("drain", node=1, drain=False)
    assert volume.call("nodes")[3::3] == [0]


def test_a_node_that_a_late_commit_names_is_not_taken_for_empty(volume: Volume, session: Session) -> None:
    """It is being emptied since then: what was found of it before does not count. Other nodes are as they were."""
    volume.client.hset(f"{volume.key}:draining", mapping={"1": 1, "9": 1})

    def commit() -> None:
        session.commit(session.create(1, b"written").ino, {0: [session.segment(0, 10)]})

    def append() -> None:
        session.append(session.create(1, b"appended").ino, (session.new_extent(), 10))

    for put in (commit, append):
        volume.client.hset(f"{volume.key}:draining", "1", 1)
        put()
        since_ms = volume.client.hgetall(f"{volume.key}:draining")
        assert int(since_ms[b"1"]) > 1, put.__name__
        assert since_ms[b"9"] == b"1"
        assert len(since_ms) == 2, "node 2 is to keep what it has"


def test_a_node_is_forgotten_when_it_is_emptied_and_silent(volume: Volume) -> None:
    """And refused from then on; its number is not used again."""
    volume.call("heartbeat", uuid="n", address="a:1", volume="", seq=0, **HEARTBEAT)
    assert volume.errno("forget", node=2, silent_ms=0, since_ms=0) == errno.ENOENT
    assert volume.errno("forget", node=1, silent_ms=0, since_ms=0) == errno.EBUSY
    volume.call("drain", node=1, drain=True)
    (since_ms,) = volume.call("nodes")[3::3]
    assert volume.errno("forget", node=1, silent_ms=60_000, since_ms=since_ms) == errno.EBUSY
    assert volume.errno("forget", node=1, silent_ms=0, since_ms=since_ms - 1) == errno.EBUSY, "it was drained before"
    volume.call("forget", node=1, silent_ms=0, since_ms=since_ms)
    assert volume.call("nodes")[1:] == []
    assert volume.errno("heartbeat", uuid="n", address="a:1", volume="", seq=0, **HEARTBEAT) == errno.ESTALE
    assert volume.call("heartbeat", uuid="m", address="a:1", volume="", seq=0, **HEARTBEAT)[0] == 2


def test_a_full_redis_still_deletes(volume: Volume, session: Session) -> None:
    """Making is ENOSPC (an OOM error that the store translates), unlinking and cutting work."""
    made = session.create(1, b"f")
    session.commit(made.ino, {0: [session.segment(0, 10)]})
    volume.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(Exception, match="maxmemory"):
            session.mkdir(1, b"d")
        session.setattr(made.ino, size=0)
        session.unlink(1, b"f")
        session.call("release", ino=made.ino)
        volume.reclaim()
    finally:
        volume.client.config_set("maxmemory", 0)
    assert not is_there(volume, made.ino)


def test_the_log_tells_every_mutation_in_order(volume: Volume, session: Session) -> None:
    made = session.mkdir(1, b"d")
    session.rename(1, b"d", 1, b"e")
    rows = volume.client.xrange(f"{volume.key}:log")
    entries = [msgpack.unpackb(fields[b"e"], raw=True) for _, fields in rows]
    assert entries == [
        [session.number, b"mkdir", [1, made.ino], [b"d"]],
        [session.number, b"rename", [1, 1, made.ino], [b"d", b"e"]],
    ]
    assert int(rows[-1][0].partition(b"-")[0]) == volume.status()["seq"]


def test_nodes_of_a_replica_are_kept(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    segment = session.segment(0, 10, NODES[1:])
    session.commit(made.ino, {0: [segment]})
    assert volume.chunks(made.ino)[0][0].nodes == NODES[1:]
    session.setattr(made.ino, size=0)
    assert volume.call("condemned", count=1)[1] == pack_nodes(NODES[1:])
