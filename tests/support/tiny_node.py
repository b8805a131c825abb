"""A storage node in memory, on a real socket, whose faults can be chosen.

For what the real node cannot be made to do: hang at a chosen request, answer wrong bytes with
a straight face, be full at will.
"""

from __future__ import annotations

import base64
import threading
from dataclasses import replace

from servers.protocol.checksum import block_sums, first_damaged_block
from servers.protocol.ids import NodeNumber
from servers.protocol.limits import BLOCK_BYTES
from servers.protocol.placement import NodeView
from servers.protocol.storage_api import (
    BARRIER_PATH,
    EXTENT_HEADER,
    EXTENTS_PATH,
    LENGTH_HEADER,
    SUMS_HEADER,
    unpack_extent_header,
)
from tests.support.scripted_server import Peer, Request, ScriptedServer


class TinyNode(ScriptedServer):
    def __init__(self, number: int) -> None:
        super().__init__(self._serve_peer)
        self.number = NodeNumber(number)
        self.extents: dict[str, bytearray] = {}
        self.sums: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.state = "up"
        """Or: hangs, resets, full, denies, broken, slow."""
        self.slow_seconds = 0.0
        self._let_go = threading.Event()

    def __exit__(self, *error: object) -> None:
        self._let_go.set()
        super().__exit__(None, None, None)

    @property
    def view(self) -> NodeView:
        room = 1 << 30
        return NodeView(self.number, f"uuid-{self.number}", self.address, "alive", room, 0, room, f"fs-{self.number}")

    def dead_view(self) -> NodeView:
        return replace(self.view, state="dead")

    def flip_a_bit(self, at: int) -> None:
        for data in self.extents.values():
            data[at] ^= 1

    def _serve_peer(self, peer: Peer) -> None:
        while True:
            request = peer.read_request()
            if request is None:
                return
            self.requests.append(replace(request, body=b""))
            if self.state == "hangs":
                self._let_go.wait(30)
                return
            if self.state == "resets":
                peer.reset()
                return
            if self.state == "slow":
                self._let_go.wait(self.slow_seconds)
            if self.state == "full" and request.method == "PUT":
                peer.answer(b"no room", 507)
            elif self.state == "denies":
                peer.answer(b"who?", 401)
            elif self.state == "broken":
                peer.answer(b"sorry", 503)
            else:
                self._answer(peer, request)

    def _answer(self, peer: Peer, request: Request) -> None:
        target = request.target.partition("?")[0]
        if target == BARRIER_PATH:
            peer.answer(b"{}")
            return
        name = target.removeprefix(EXTENTS_PATH)
        if request.method == "PUT":
            header = unpack_extent_header(request.headers[EXTENT_HEADER])
            if first_damaged_block(request.body, header.sums) is not None:
                peer.answer(b"wrong sum", 400)
                return
            self.extents[name], self.sums[name] = bytearray(request.body), header.sums
            peer.answer(b"", 201)
        elif name not in self.extents:
            peer.answer(b"not there", 404)
        else:
            self._answer_part(peer, name, request.headers["range"])

    def _answer_part(self, peer: Peer, name: str, wanted: str) -> None:
        data = self.extents[name]
        start, end = (int(text) for text in wanted.removeprefix("bytes=").split("-"))
        if start >= len(data):
            peer.answer(b"beyond the end", 416)
            return
        part = bytes(data[start : end + 1])
        sums = self.sums[name][4 * (start // BLOCK_BYTES) :][: 4 * -(-len(part) // BLOCK_BYTES)]
        headers = {LENGTH_HEADER: str(len(data)), SUMS_HEADER: base64.b64encode(sums).decode()}
        peer.answer(part, 206, content_range=f"bytes {start}-{start + len(part) - 1}/{len(data)}", **headers)

    def shorten(self, length: int) -> None:
        """The replica becomes a shorter one whose sums are right for what is left."""
        for name, data in self.extents.items():
            del data[length:]
            self.sums[name] = block_sums([data])
