"""The seed's eight REST calls, as a person with curl has them, on a real cluster."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.cluster import SECRET, Cluster

ROUTES = [
    ("POST", "/register_storage"),
    ("POST", "/files/init"),
    ("POST", "/files/2.YQ/chunks"),
    ("POST", "/files/2.YQ/finalize"),
    ("GET", "/files/2.YQ/chunks/0"),
    ("GET", "/files?name=a"),
    ("GET", "/files/2.YQ/size"),
    ("DELETE", "/files/2.YQ"),
    ("GET", "/v1/status"),
    ("POST", "/v1/ops"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
]


@pytest.fixture(scope="module")
def rest(shared_cluster: Cluster) -> Iterator[Rest]:
    with httpx.Client(headers={"authorization": f"Bearer {SECRET}"}, trust_env=False, timeout=30) as http:
        yield Rest(shared_cluster, http)


class Rest:
    def __init__(self, cluster: Cluster, http: httpx.Client) -> None:
        self.cluster = cluster
        self.http = http
        self.made: list[str] = []

    def ask(self, method: str, target: str, content: object = None, expect: int = 200) -> dict[str, Any]:
        answer = self.cluster.rest(method, target, content)
        assert answer.status_code == expect, answer.text
        reply: dict[str, Any] = answer.json()
        return reply

    def init(self, name: str, **more: object) -> str:
        self.made.append(str(self.ask("POST", "/files/init", {"name": name, **more}, 201)["file_id"]))
        return self.made[-1]

    def place(self, file_id: str, index: int, length: int, expect: int = 201) -> dict[str, Any]:
        return self.ask("POST", f"/files/{file_id}/chunks", {"index": index, "length": length}, expect)

    def put(self, place: dict[str, Any], data: bytes) -> None:
        for server in place["servers"]:
            answer = self.http.put(server["url"], content=data)
            assert answer.status_code in (200, 201), answer.text

    def create(self, name: str, chunks: list[bytes], **more: object) -> str:
        file_id = self.init(name, **more)
        for index, data in enumerate(chunks):
            self.put(self.place(file_id, index, len(data)), data)
        self.ask("POST", f"/files/{file_id}/finalize", {})
        return file_id

    def read(self, name: str) -> bytes:
        found = self.ask("GET", str(httpx.URL("/files", params={"name": name})))
        data = bytearray(found["size"])
        for index in range(-(-found["size"] // found["chunk_size"])):
            for part in self.ask("GET", f"/files/{found['file_id']}/chunks/{index}")["parts"]:
                extent = self.http.get(part["servers"][-1]["url"])
                at = index * found["chunk_size"] + part["offset"]
                start = part["extent_offset"]
                data[at : at + part["length"]] = extent.content[start : start + part["length"]]
        return bytes(data)


def test_a_file_is_stored_as_the_directory_of_its_name_asks_for(rest: Rest) -> None:
    """The chunk size that the directory has at init; where there is none yet, that of the top directory."""
    early = rest.init("rest-layout/early")
    rest.cluster.dcs("mkdir", "rest-layout")
    rest.cluster.dcs("setchunk", "4K", "rest-layout")
    rest.cluster.dcs("setrep", "2", "rest-layout")
    file = rest.create("rest-layout/f", [b"a" * 4096, b"b"])
    assert rest.read("rest-layout/f") == b"a" * 4096 + b"b"
    assert len(rest.place(rest.init("rest-layout/g"), 0, 1)["servers"]) == 2
    assert rest.ask("POST", f"/files/{file}/finalize", {})["chunk_size"] == 4096
    default = rest.ask("POST", "/files/init", {"name": "top"}, 201)["chunk_size"]
    assert rest.ask("POST", f"/files/{early}/finalize", {})["chunk_size"] == default != 4096
    chosen = rest.ask("POST", "/files/init", {"name": "rest-layout/h", "chunk_size": 8192}, 201)
    assert chosen["chunk_size"] == 8192


def test_a_file_from_init_to_delete(rest: Rest) -> None:
    """What the README shows, step by step; the mount's tools see the same file."""
    data = random.Random(1).randbytes(2500)
    file_id = rest.init("story.txt", chunk_size=1024)
    for index in (2, 0, 1):
        piece = data[index * 1024 : (index + 1) * 1024]
        place = rest.place(file_id, index, len(piece))
        assert len({server["node"] for server in place["servers"]}) == 3
        rest.put(place, piece)
    said = rest.ask("GET", "/files?name=story.txt", expect=404)
    assert said["detail"] == "story.txt: No such file or directory"
    assert rest.ask("POST", f"/files/{file_id}/finalize", {})["size"] == 2500
    assert rest.ask("GET", f"/files/{file_id}/size") == {"size": 2500}
    assert rest.read("story.txt") == data
    assert rest.cluster.read("/story.txt") == data
    assert rest.ask("DELETE", f"/files/{file_id}") == {"deleted": "story.txt"}
    rest.ask("GET", "/files?name=story.txt", expect=404)
    rest.ask("DELETE", f"/files/{file_id}", expect=404)
    rest.ask("GET", f"/files/{file_id}/size", expect=404)


def test_what_the_command_made_is_found(rest: Rest) -> None:
    rest.cluster.write("/made by dcs", b"hello")
    assert rest.read("made by dcs") == b"hello"


def test_a_taken_name_is_a_conflict_unless_overwritten(rest: Rest) -> None:
    """At init and at finalize, whichever comes second; the reader of the name sees one file or the other, whole."""
    rest.create("taken", [b"old"])
    rest.ask("POST", "/files/init", {"name": "taken"}, 409)
    rest.ask("POST", "/files/init", {"name": "/taken"}, 409)
    one, two = rest.init("fresh"), rest.init("fresh")
    rest.ask("POST", f"/files/{one}/finalize", {})
    rest.ask("POST", f"/files/{two}/finalize", {}, 409)
    rest.ask("POST", f"/files/{two}/finalize", {"overwrite": True})
    third = rest.init("taken", overwrite=True)
    rest.put(rest.place(third, 0, 3), b"new")
    assert rest.read("taken") == b"old"
    rest.ask("POST", f"/files/{third}/finalize", {"overwrite": True})
    assert rest.read("taken") == b"new"


def test_finalize_wants_every_byte_on_every_server(rest: Rest) -> None:
    """409 says which server lacks what; afterwards it can be done again, and again."""
    file_id = rest.init("late")
    place = rest.place(file_id, 0, 10)
    rest.ask("POST", f"/files/{file_id}/finalize", {}, 409)
    rest.put({"servers": place["servers"][:2]}, b"0123456789")
    refused = rest.ask("POST", f"/files/{file_id}/finalize", {}, 409)
    assert place["servers"][2]["address"] in refused["detail"]
    rest.put(place, b"0123456789")
    first = rest.ask("POST", f"/files/{file_id}/finalize", {})
    assert rest.ask("POST", f"/files/{file_id}/finalize", {}) == first
    rest.ask("POST", f"/files/{file_id}/finalize", {"size": 11}, 409)
    rest.place(file_id, 1, 10, expect=409)


def test_a_chunk_may_be_placed_again_but_not_made_shorter(rest: Rest) -> None:
    """As after an answer that was lost; the last place counts."""
    file_id = rest.init("again")
    rest.put(rest.place(file_id, 0, 5), b"first")
    rest.place(file_id, 0, 4, expect=409)
    rest.put(rest.place(file_id, 0, 6), b"second")
    rest.ask("POST", f"/files/{file_id}/finalize", {})
    assert rest.read("again") == b"second"


def test_chunks_that_were_left_out_are_holes(rest: Rest) -> None:
    """And a size beyond the last chunk is one too; a size within it is refused."""
    file_id = rest.init("sparse", chunk_size=1024)
    rest.put(rest.place(file_id, 1, 4), b"data")
    rest.ask("POST", f"/files/{file_id}/finalize", {"size": 1027}, 422)
    rest.ask("POST", f"/files/{file_id}/finalize", {"size": 3000})
    assert rest.read("sparse") == bytes(1024) + b"data" + bytes(3000 - 1028)
    rest.ask("GET", f"/files/{file_id}/chunks/3", expect=404)
    assert rest.ask("GET", f"/files/{file_id}/chunks/0") == {"index": 0, "parts": []}


def test_an_empty_file(rest: Rest) -> None:
    rest.create("empty", [])
    assert rest.read("empty") == b""


def test_names_that_are_no_text_are_escaped(rest: Rest) -> None:
    """And every way of saying that a name cannot be is 422 or 404, never a 500."""
    rest.create("a \\\\ b \\xff ü", [b"x"])
    assert rest.read("/a \\\\ b \\xff ü") == b"x"
    for name in ("", "/", ".", "../x", "a/./b", "x" * 300, "\\", "\\q", "a\0b", "\\x00", "x/" * 3000):
        assert rest.cluster.rest("POST", "/files/init", {"name": name}).status_code == 422, name
        found = rest.cluster.rest("GET", str(httpx.URL("/files", params={"name": name})))
        assert found.status_code == 422, name
    for body in (b'{"name": "\\ud800"}', b'{"name": "\\udc80"}', b'{"name": "a", "mode": 1e400}', b"[", b"\xff", b"{}"):
        answer = rest.http.post(rest.cluster.naming_url + "/files/init", content=body)
        assert answer.status_code in (201, 422), (body, answer.text)


def test_directories_and_links_are_no_files(rest: Rest) -> None:
    """Reading a link's target length as zeros would be wrong bytes."""
    rest.cluster.dcs("mkdir", "/dir")
    rest.create("dir/inside", [b"x"])
    assert rest.read("dir/inside") == b"x"
    rest.ask("GET", "/files?name=dir", expect=409)
    file_id = rest.init("no/such/dir")
    rest.ask("POST", f"/files/{file_id}/finalize", {}, 404)
    file_id = rest.init("dir", overwrite=True)
    rest.ask("POST", f"/files/{file_id}/finalize", {"overwrite": True}, 409)


@pytest.mark.parametrize(
    "file_id",
    ["x", "2", "2.", ".YQ", "0.YQ", "-2.YQ", "2.Li4", "2.AA", "g.YQ", "f" * 300 + ".YQ", "2.%00", "1.YQ", "99.YQ"],
)
def test_a_file_id_that_is_none_is_not_found(rest: Rest, file_id: str) -> None:
    for method, target in (("GET", "size"), ("GET", "chunks/0"), ("POST", "finalize"), ("DELETE", "")):
        answer = rest.cluster.rest(method, f"/files/{file_id}/{target}".rstrip("/"), {} if method == "POST" else None)
        assert answer.status_code in (404, 409), (method, target, answer.text)


def test_a_file_id_ends_with_its_name(rest: Rest) -> None:
    """Of a renamed file, and of a file that another took the name of."""
    first = rest.create("moving", [b"1"])
    rest.cluster.dcs("mv", "/moving", "/moved")
    rest.ask("GET", f"/files/{first}/size", expect=404)
    rest.create("moving", [b"22"])
    rest.ask("GET", f"/files/{first}/size", expect=404)
    rest.ask("DELETE", f"/files/{first}", expect=404)
    assert rest.read("moving") == b"22"


@pytest.mark.parametrize(("method", "target"), ROUTES)
def test_every_route_wants_the_secret(shared_cluster: Cluster, method: str, target: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": SECRET}, {"authorization": "Basic eA=="}):
        answer = httpx.request(
            method,
            shared_cluster.naming_url + target,
            headers=headers,
            trust_env=False,
            content=b"" if method == "POST" else None,
        )
        assert answer.status_code == 401, headers
        assert "detail" in answer.json()


def test_health_wants_no_secret(shared_cluster: Cluster) -> None:
    assert httpx.get(shared_cluster.naming_url + "/health", trust_env=False).json() == {"status": "ok"}


def test_deleted_files_leave_the_nodes(rest: Rest) -> None:
    """All of what this module made, and what it only began."""
    abandoned = rest.init("abandoned")
    rest.put(rest.place(abandoned, 0, 5), b"never")
    for file_id in rest.made:
        assert rest.cluster.rest("DELETE", f"/files/{file_id}").status_code in (200, 404)
    rest.cluster.wait_clean(30)
    rest.ask("POST", f"/files/{abandoned}/finalize", {}, 404)
    status = rest.cluster.status()
    assert (status["deletions_pending"], status["orphans"]) == (0, 0)


def test_a_file_that_is_being_filled_is_no_finding(rest: Rest) -> None:
    """Its chunks are placed before they are there; nobody reads them, so fsck does not miss them."""
    file_id = rest.init("filling")
    rest.place(file_id, 0, 5)
    rest.cluster.wait_clean(30)
    rest.ask("DELETE", f"/files/{file_id}")
    rest.ask("DELETE", f"/files/{file_id}", expect=404)


def test_a_walk_over_all_extents_does_not_go_on_in_another_redis(rest: Rest) -> None:
    """Its cursor would leave some out."""
    told = rest.ask("GET", "/v1/extents?after=7-0123456789abcdef", expect=409)
    assert "begin anew" in told["detail"]
    process = rest.cluster.ask_redis("INFO", "server").split("run_id:")[1].split()[0]
    assert rest.ask("GET", f"/v1/extents?after=0-{process}")["next"] is None


def test_too_few_nodes_is_the_documented_500(rest: Rest) -> None:
    """Fewer than three live servers: nothing is placed. Last in this module, it takes a node down for a while."""
    node = rest.cluster.nodes[0]
    node.kill()
    rest.cluster.wait_state(node, "suspect")
    file_id = rest.init("strict")
    assert rest.place(file_id, 0, 1, expect=500)["detail"] == "Fewer than 3 storage servers available"
    node.start()
    rest.cluster.wait_state(node, "alive")
    rest.put(rest.place(file_id, 0, 1), b"x")
