"""A storage node as a real process, through every route and status of `servers.protocol.storage_api`."""

from __future__ import annotations

import base64
import json
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from crc32c import crc32c

from servers.protocol.checksum import block_sums, first_damaged_block
from servers.protocol.limits import CHUNK_BYTES_MAX, KIB, MIB
from servers.protocol.storage_api import ExtentHeader
from servers.storage.extent_file import parse_footer
from tests.support.naming_stub import NamingStub
from tests.support.processes import wait_for
from tests.support.storage_node import RawConnection, StorageNode, header_of, raw_request

SIZES = [1, KIB, 4095, 64 * KIB, 64 * KIB + 1, 256 * KIB, 256 * KIB + 1, MIB + 13, 8 * MIB, CHUNK_BYTES_MAX]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageNode]:
    made = StorageNode(tmp_path_factory.mktemp("node"))
    made.start()
    yield made
    assert made.temporary_files() == []
    made.close()
    assert made.exit_status == 0, made.log_tail()


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[StorageNode]:
    made = StorageNode(tmp_path)
    made.start()
    yield made
    made.close()


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_stored_is_read(node: StorageNode, size: int, sync: bool) -> None:
    """Of every size, whole, with its length and its sums, and lies on the disk as the format says."""
    body, extent = random.Random(size).randbytes(size), f"{size:x}-{sync:x}"
    assert node.put(extent, body, sync=sync) == 201
    reply = node.get(extent)
    assert (reply.status_code, reply.headers["dcs-length"]) == (200, str(size))
    assert reply.content == body
    assert first_damaged_block(body, base64.b64decode(reply.headers["dcs-crc32c"])) is None
    raw = (node.data_dir / "extents" / f"{sync:02x}" / extent).read_bytes()
    assert raw[:size] == body
    assert parse_footer(raw[-20_000:], len(raw)).header == header_of(body)


def test_one_byte_too_many_is_413(node: StorageNode) -> None:
    assert node.put("aa-1", bytes(CHUNK_BYTES_MAX + 1)) == 413
    assert node.get("aa-1").status_code == 404


def test_ranges(node: StorageNode) -> None:
    """Any range comes as 206 with the sums of the blocks that it touches; beyond the end is 416."""
    body = os.urandom(300_000)
    node.put("ab-1", body)
    table = block_sums([body])
    for start, last in [(0, 0), (0, 65_535), (65_536, 131_071), (65_535, 65_536), (299_999, 299_999), (131_072, 10**9)]:
        reply = node.get("ab-1", range=f"bytes={start}-{last}")
        end = min(last + 1, len(body))
        assert (reply.status_code, reply.content) == (206, body[start:end])
        assert reply.headers["content-range"] == f"bytes {start}-{end - 1}/300000"
        assert reply.headers["dcs-length"] == "300000"
        touched = table[start // 65_536 * 4 : -(-end // 65_536) * 4]
        assert base64.b64decode(reply.headers["dcs-crc32c"]) == touched
    assert node.get("ab-1", range="bytes=299990-").content == body[299_990:]
    beyond = node.get("ab-1", range="bytes=300000-300001")
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */300000")
    for wrong in ("bytes=5-4", "bytes=-5", "bytes=0-1,3-4", "lines=1-2", "bytes=a-b"):
        assert node.get("ab-1", range=wrong).status_code == 400, wrong


def test_a_range_comes_from_the_disk_too(own_node: StorageNode) -> None:
    """Also of an extent that the node has not open, and of one that is larger than what is read at once."""
    body = os.urandom(MIB)
    own_node.put("1-1", body)
    own_node.restart()
    assert own_node.get("1-1", range="bytes=65536-131071").content == body[65_536:131_072]
    assert own_node.get("1-1", range="bytes=0-999999").content == body[:1_000_000]


def test_head_tells_the_length(node: StorageNode) -> None:
    node.put("ac-1", bytes(100_000))
    reply = node.http.head("/v1/extents/ac-1")
    assert (reply.status_code, reply.headers["content-length"], reply.headers["dcs-length"]) == (
        200,
        "100000",
        "100000",
    )
    assert node.http.head("/v1/extents/ac-2").status_code == 404


@pytest.mark.fault("N8")
def test_the_same_again_is_200_and_other_content_409(node: StorageNode) -> None:
    for sync in (False, True):
        extent = f"ad-{sync:x}"
        assert [node.put(extent, b"this", sync=s) for s in (sync, False, True)] == [201, 200, 200]
        assert [node.put(extent, other) for other in (b"that", b"this.")] == [409, 409]
        assert node.get(extent).content == b"this"


def test_without_a_header_the_node_computes_the_sums(node: StorageNode) -> None:
    reply = node.http.put("/v1/extents/ae-1", content=b"from curl")
    assert reply.status_code == 201
    sums = base64.b64decode(node.get("ae-1").headers["dcs-crc32c"])
    assert sums == struct.pack(">I", crc32c(b"from curl"))


def test_a_body_that_is_not_what_its_header_says_is_400_and_leaves_nothing(node: StorageNode) -> None:
    before = node.statistics()["puts"]
    good = header_of(b"good")
    assert node.put("af-1", b"bad!", header=good) == 400
    assert node.put("af-1", b"good and more", header=good) == 400
    huge = ExtentHeader("v", 1, 1, 1, b"n" * 9000, good.sums)
    assert node.put("af-1", b"good", header=huge) == 400
    assert node.http.put("/v1/extents/af-1", content=b"x", headers={"dcs-extent": "!!"}).status_code == 400
    assert node.http.put("/v1/extents/af-1", content=b"").status_code == 400
    assert node.http.put("/v1/extents/af-1?sync=yes", content=b"x").status_code == 400
    assert node.get("af-1").status_code == 404
    assert node.statistics()["puts"] == before
    assert node.temporary_files() == []


@pytest.mark.parametrize("extent", ["x", "01-1", "1-1-1", "1", "-", "1-", "G-1", "10000000000000000-1", "..", "1-1%20"])
@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD"])
def test_what_is_no_extent_id_is_refused(node: StorageNode, method: str, extent: str) -> None:
    with RawConnection(node.address) as connection:
        connection.send(raw_request(method, f"/v1/extents/{extent}", b"x" if method == "PUT" else b""))
        assert connection.reply(head_only=method == "HEAD").status == 400


def test_a_sender_that_leaves_in_the_middle_leaves_nothing(node: StorageNode) -> None:
    for size in (10_000, MIB):
        with RawConnection(node.address) as connection:
            connection.send(raw_request("PUT", f"/v1/extents/b0-{size:x}", bytes(size))[:-1])
        assert node.get(f"b0-{size:x}").status_code == 404
    assert node.temporary_files() == []


def test_a_node_that_is_not_meant_does_nothing(node: StorageNode) -> None:
    """421, whatever is asked; the one that is meant obeys."""
    me = node.http.get("/v1/space").json()["uuid"]
    extent, body = "5-999", b"for somebody else"
    asked = [
        ("PUT", f"/v1/extents/{extent}", body), ("GET", "/v1/extents/5-1", b""), ("HEAD", "/v1/extents/5-1", b""),
        ("POST", "/v1/barrier", b""), ("POST", "/v1/extents/check", b'{"extents": []}'), ("GET", "/v1/inventory", b""),
    ]  # fmt: skip
    for method, target, content in asked:
        answer = node.http.request(method, target, content=content, headers={"dcs-node": "0" * 32})
        assert answer.status_code == 421, (method, target)
        assert method == "HEAD" or me in answer.text
    assert node.get(extent).status_code == 404
    assert node.http.put(f"/v1/extents/{extent}", content=body, headers={"dcs-node": me}).status_code == 201
    assert node.get(extent, **{"dcs-node": me}).content == body


def test_many_are_checked_at_once(node: StorageNode) -> None:
    for number in (1, 2, 3):
        node.put(f"b2-{number}", bytes(number))
    names = [f"b2-{number}" for number in (1, 2, 3, 4)]
    check = node.http.post("/v1/extents/check", json={"extents": names})
    assert check.json() == {"extents": {"b2-1": 1, "b2-2": 2, "b2-3": 3, "b2-4": None}}
    assert node.http.post("/v1/extents/check", json={"extents": ["x"]}).status_code == 422
    assert node.http.post("/v1/extents/check", json={"extents": ["1-1"] * 4097}).status_code == 422


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_the_inventory_is_complete_page_by_page(own_node: StorageNode, limit: int) -> None:
    """Every extent exactly once, whatever the page size, also while others come and go."""
    chance = random.Random(limit)
    wanted = {f"{chance.randrange(1, 5):x}-{chance.randrange(1, 2000):x}": chance.randrange(1, 2000) for _ in range(60)}
    for extent, length in wanted.items():
        own_node.put(extent, bytes(length))
    rows = own_node.inventory(limit)
    assert len(rows) == len(wanted)
    assert dict(rows) == wanted


def test_the_inventory_stays_complete_while_others_are_deleted(own_node: StorageNode) -> None:
    for number in range(1, 41):
        own_node.put(f"1-{number:x}", b"x")
    seen: list[str] = []
    after = ""
    while True:
        page = own_node.http.get(f"/v1/inventory?limit=3{after}").json()
        seen += [row["id"] for row in page["extents"]]
        for row in page["extents"][-1:]:
            own_node.delete(row["id"])  # The very one that the next page begins after.
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert sorted(seen) == sorted({f"1-{number:x}" for number in range(1, 41)})


def test_an_inventory_that_cannot_be_complete_is_an_error(own_node: StorageNode) -> None:
    own_node.put("1-1", b"x")
    (own_node.data_dir / "extents" / "80").rmdir()
    assert own_node.http.get("/v1/inventory").status_code == 503


def test_the_description_tells_where_and_what(node: StorageNode) -> None:
    body = os.urandom(100_000)
    node.put("b3-1", body)
    told = node.http.get("/v1/extents/b3-1/description").json()
    assert Path(told["path"]).read_bytes()[:100_000] == body
    assert (told["volume"], told["inode"], told["chunk"], told["name"]) == ("volume-1", 7, 3, "na\\xffme")
    assert (told["length"], told["blocks"], told["verified"]) == (100_000, 2, True)
    assert told["sums"] == [f"{crc32c(block):08x}" for block in (body[:65_536], body[65_536:])]
    assert node.http.get("/v1/extents/b3-2/description").status_code == 404


def _hurt(path: str, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x40]))


def test_damage_in_the_footer_is_noticed_and_counted(node: StorageNode) -> None:
    """GET, HEAD and the description answer 500 `damaged`; it is in no listing; storing again repairs."""
    body = os.urandom(70_000)
    for at in (-1, -20, -40, 70_000):
        node.put("b4-1", body)
        _hurt(node.http.get("/v1/extents/b4-1/description").json()["path"], at)
        before = node.statistics()["damaged"]
        reply = node.get("b4-1")
        assert reply.status_code == 500
        assert reply.json()["detail"].startswith("damaged")
        assert node.statistics()["damaged"] == before + 1
        assert node.http.head("/v1/extents/b4-1").status_code == 500
        assert node.http.get("/v1/extents/b4-1/description").status_code == 500
        assert node.http.post("/v1/extents/check", json={"extents": ["b4-1"]}).json() == {"extents": {"b4-1": -1}}
        assert "b4-1" not in dict(node.inventory())
        assert node.put("b4-1", body) == 201
        assert node.get("b4-1").content == body


def test_a_truncated_replica_is_damaged(node: StorageNode) -> None:
    for length in (100_010, 50_000, 5, 0):
        assert node.put("b5-1", bytes(100_000)) == 201
        os.truncate(node.http.get("/v1/extents/b5-1/description").json()["path"], length)
        assert node.get("b5-1").status_code == 500
    node.delete("b5-1")


def test_damage_in_the_data_is_for_the_reader_to_notice_and_the_description_to_tell(node: StorageNode) -> None:
    body = os.urandom(200_000)
    node.put("b6-1", body)
    told = node.http.get("/v1/extents/b6-1/description").json()
    _hurt(told["path"], 150_000)
    reply = node.get("b6-1")
    assert reply.status_code == 200
    assert first_damaged_block(reply.content, base64.b64decode(reply.headers["dcs-crc32c"])) == 2
    assert not node.http.get("/v1/extents/b6-1/description").json()["verified"]
    assert node.put("b6-1", body) == 201  # Storing again repairs.
    assert node.get("b6-1").content == body


def test_a_file_under_another_name_is_damaged(node: StorageNode) -> None:
    node.put("b7-1", b"seven")
    path = Path(node.http.get("/v1/extents/b7-1/description").json()["path"])
    path.rename(path.with_name("b8-1"))
    assert node.get("b8-1").status_code == 500
    node.delete("b8-1")


def test_a_missing_or_wrong_secret_is_401_everywhere_but_at_health(node: StorageNode) -> None:
    targets = [
        ("GET", "/v1/extents/1-1"), ("PUT", "/v1/extents/1-1"), ("POST", "/v1/extents/undelete"),
        ("HEAD", "/v1/extents/1-1"), ("POST", "/v1/barrier"), ("GET", "/v1/space"), ("GET", "/v1/inventory"),
        ("POST", "/v1/extents/delete"), ("POST", "/v1/extents/check"), ("GET", "/v1/extents/1-1/description"),
        ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/nowhere"),
    ]  # fmt: skip
    for method, target in targets:
        for secret in ("", "secret-of-one-nod", "secret-of-one-node2"):
            with RawConnection(node.address) as connection:
                connection.send(raw_request(method, target, secret=secret))
                assert connection.reply(head_only=method == "HEAD").status == 401, (method, target)
    with RawConnection(node.address) as connection:
        connection.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.reply().status == 200


def test_the_openapi_page_shows_every_route(node: StorageNode) -> None:
    paths = node.http.get("/openapi.json").json()["paths"]
    assert set(paths["/v1/extents/{extent}"]) == {"put", "get", "head"}
    assert {"/health", "/v1/space", "/v1/inventory", "/v1/barrier", "/v1/extents/delete", "/v1/extents/check"} < set(
        paths
    )
    assert node.http.get("/docs").status_code == 200


def test_the_lanes_routes_are_served_behind_an_asgi_request_too(node: StorageNode) -> None:
    """What a client pipelines behind an ordinary request goes through ASGI, with the same answers."""
    body = os.urandom(100_000)
    with RawConnection(node.address) as connection:
        connection.send(
            raw_request("GET", "/health"),
            raw_request("PUT", "/v1/extents/b9-1", body)
            + raw_request("GET", "/v1/extents/b9-1", b"", "Range: bytes=1-2")
            + raw_request("HEAD", "/v1/extents/b9-1")
        )  # fmt: skip
        assert connection.reply().status == 200
        assert connection.reply().status == 201
        part = connection.reply()
        assert (part.status, part.body) == (206, body[1:3])
        head = connection.reply(head_only=True)
        assert (head.status, head.headers["content-length"]) == (200, "100000")


def test_space_counts_what_is_stored(own_node: StorageNode) -> None:
    """Also after a restart; and names the file system."""
    for number in range(1, 6):
        own_node.put(f"1-{number}", bytes(1000 * number))
    files = [path for path in (own_node.data_dir / "extents").rglob("*") if path.is_file()]
    before = own_node.http.get("/v1/space").json()
    assert before["used_bytes"] == sum(path.stat().st_size for path in files)
    assert before["total_bytes"] >= before["free_bytes"] > 0
    own_node.restart()
    after = own_node.http.get("/v1/space").json()
    assert {name: after[name] for name in ("used_bytes", "uuid", "space", "address")} == {
        name: before[name] for name in ("used_bytes", "uuid", "space", "address")
    }


def test_a_second_process_on_the_directory_refuses_to_start(node: StorageNode, tmp_path: Path) -> None:
    second = StorageNode(tmp_path, DATA_DIR=str(node.data_dir))
    second.start(wait=False)
    wait_for(lambda: not second.is_running, "the second process has ended")
    assert second.exit_status == 1
    assert second.log_tail() == f"storage node: another storage node uses {node.data_dir} already\n"
    second.close()


@pytest.mark.parametrize(
    "settings", [{"DCS_SECRET": ""}, {"PORT": "x"}, {"NAMING_URL": "ftp://x"}, {"DATA_DIR": "/proc/x"}]
)
def test_settings_that_cannot_work_are_told_and_end_it(tmp_path: Path, settings: dict[str, str]) -> None:
    node = StorageNode(tmp_path, **settings)
    node.start(wait=False)
    wait_for(lambda: not node.is_running, "it has ended")
    assert node.exit_status == 1
    assert node.log_tail().startswith("storage node: ")
    assert "Traceback" not in node.log_tail()
    node.close()


def test_leftovers_of_a_crash_are_removed_at_start(own_node: StorageNode) -> None:
    own_node.put("1-1", b"kept")
    own_node.kill()
    (own_node.data_dir / "tmp" / "05" / "1-2.5").write_bytes(b"half")
    own_node.start()
    assert own_node.temporary_files() == []
    assert own_node.inventory() == [("1-1", 4)]


def test_no_room_is_507_and_leaves_nothing(tmp_path: Path) -> None:
    """Below the reserve nothing is taken, but reading goes on."""
    node = StorageNode(tmp_path)
    node.start()
    node.put("1-1", b"before")
    node.environment["RESERVE_BYTES"] = str(1 << 60)
    node.restart()
    assert node.put("1-2", b"more") == 507
    assert node.get("1-1").content == b"before"
    assert node.http.get("/v1/space").json()["free_bytes"] == 0
    assert node.temporary_files() == []
    node.close()


def test_stopping_syncs_what_was_not(own_node: StorageNode) -> None:
    own_node.put("1-1", bytes(100_000))
    assert own_node.statistics()["unsynced"] == 1
    assert own_node.stop() == 0
    own_node.start()
    assert own_node.get("1-1").content == bytes(100_000)


def test_it_syncs_by_itself_within_five_seconds(own_node: StorageNode) -> None:
    own_node.put("1-1", b"x")
    wait_for(lambda: own_node.statistics()["unsynced"] == 0, "the syncer has done its work", 5)


def test_the_heartbeat_says_what_the_naming_server_wants_to_know(tmp_path: Path) -> None:
    """At start and again; to the second server of the list when the first is away; for ever."""
    with NamingStub() as naming:
        node = StorageNode(tmp_path, NAMING_URL=f"http://127.0.0.1:1,{naming.url}", RACK="r1")
        node.start()
        wait_for(lambda: len(naming.reports) >= 2, "two heartbeats came", 10)
        report = json.loads(naming.reports[-1])
        space = node.http.get("/v1/space").json()
        assert report["address"] == node.address
        assert report["rack"] == "r1"
        assert {name: report[name] for name in ("uuid", "space", "total_bytes")} == {
            name: space[name] for name in ("uuid", "space", "total_bytes")
        }
        wait_for(lambda: node.http.get("/v1/space").json()["node"] == 42, "the node knows its number")
    before = len(naming.reports)
    with NamingStub(naming.port) as again:
        wait_for(lambda: again.reports, "heartbeats came back", 10)
    assert before
    node.close()
