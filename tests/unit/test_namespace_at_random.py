"""Random verbs of two sessions against a model in memory; at the end the whole volume is judged."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from servers.protocol.errors import Refused
from servers.protocol.naming_api import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.support.check_volume import check_volume
from tests.support.volume import Session, Volume

STEPS = 400
NAMES = [b"a", b"b", b"c", b"d"]
CHUNK = 1024


@dataclass
class Item:
    """A file or a directory of the model."""

    is_directory: bool
    below: dict[bytes, Item] = field(default_factory=dict)
    bytes: bytearray = field(default_factory=bytearray)
    """One byte for each of the file: the number of the write that it comes from."""
    ino: int = 0


class Model:
    """What a tree should look like, by the rules of the man pages, path by path."""

    def __init__(self) -> None:
        self.root = Item(True, ino=1)

    def directories(self) -> list[Item]:
        found, queue = [], [self.root]
        while queue:
            item = queue.pop()
            found.append(item)
            queue += [i for i in item.below.values() if i.is_directory]
        return found

    def files(self) -> list[Item]:
        found = [i for d in self.directories() for i in d.below.values() if not i.is_directory]
        return list({id(i): i for i in found}.values())

    def lies_in(self, item: Item, top: Item) -> bool:
        return item is top or any(self.lies_in(item, i) for i in top.below.values() if i.is_directory)

    def make(self, parent: Item, name: bytes, item: Item) -> int:
        if name in parent.below:
            return errno.EEXIST
        parent.below[name] = item
        return 0

    def unlink(self, parent: Item, name: bytes) -> int:
        item = parent.below.get(name)
        if item is None:
            return errno.ENOENT
        if item.is_directory:
            return errno.EISDIR
        del parent.below[name]
        return 0

    def rmdir(self, parent: Item, name: bytes) -> int:
        item = parent.below.get(name)
        if item is None:
            return errno.ENOENT
        if not item.is_directory:
            return errno.ENOTDIR
        if item.below:
            return errno.ENOTEMPTY
        del parent.below[name]
        return 0

    def rename(self, parent: Item, name: bytes, new_parent: Item, new_name: bytes, flags: int) -> int:
        item, target = parent.below.get(name), new_parent.below.get(new_name)
        if item is None or (target is None and flags == RENAME_EXCHANGE):
            return errno.ENOENT
        if target is not None and flags == RENAME_NOREPLACE:
            return errno.EEXIST
        if item.is_directory and self.lies_in(new_parent, item):
            return errno.EINVAL
        if flags == RENAME_EXCHANGE:
            assert target is not None
            if target.is_directory and self.lies_in(parent, target):
                return errno.EINVAL
            parent.below[name], new_parent.below[new_name] = target, item
            return 0
        if target is item:
            return 0
        if target is not None:
            if item.is_directory != target.is_directory:
                return errno.ENOTDIR if item.is_directory else errno.EISDIR
            if target.below:
                return errno.ENOTEMPTY
        del parent.below[name]
        new_parent.below[new_name] = item
        return 0


class Run:
    def __init__(self, volume: Volume, seed: int) -> None:
        self.volume = volume
        self.chance = random.Random(seed)
        self.sessions = [volume.session(), volume.session()]
        self.model = Model()
        self.written: dict[bytes, int] = {}
        """Extent -> the number of the write that it holds."""
        self.writes = 0

    @property
    def session(self) -> Session:
        return self.chance.choice(self.sessions)

    def directory(self) -> Item:
        return self.chance.choice(self.model.directories())

    def name(self) -> bytes:
        return self.chance.choice(NAMES)

    def file(self) -> Item | None:
        files = self.model.files()
        return self.chance.choice(files) if files else None

    def make(self) -> None:
        parent, name, is_directory = self.directory(), self.name(), self.chance.random() < 0.4
        item = Item(is_directory)
        wanted = self.model.make(parent, name, item)
        verb = self.session.mkdir if is_directory else self.session.closed
        try:
            item.ino = verb(parent.ino, name).ino
            found = 0
        except Refused as error:
            found = error.errno
        assert found == wanted

    def link(self) -> None:
        item, parent, name = self.file(), self.directory(), self.name()
        if item is not None:
            wanted = self.model.make(parent, name, item)
            assert self.session.errno("link", ino=item.ino, parent=parent.ino, name=name) == wanted

    def take_away(self) -> None:
        parent, name = self.directory(), self.name()
        verb = self.chance.choice(["unlink", "rmdir"])
        wanted = getattr(self.model, verb)(parent, name)
        assert self.session.errno(verb, parent=parent.ino, name=name) == wanted

    def rename(self) -> None:
        parent, name, new_parent, new_name = self.directory(), self.name(), self.directory(), self.name()
        flags = self.chance.choice([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])
        wanted = self.model.rename(parent, name, new_parent, new_name, flags)
        found = self.session.errno(
            "rename", parent=parent.ino, name=name, new_parent=new_parent.ino, new_name=new_name, flags=flags
        )
        assert found == wanted, (name, new_name, flags)

    def write(self) -> None:
        item = self.file()
        if item is None:
            return
        self.writes = self.writes % 255 + 1
        session, index, start = self.session, self.chance.randrange(4), self.chance.randrange(CHUNK)
        segment = session.segment(start, self.chance.randint(1, CHUNK - start))
        session.commit(item.ino, {index: [segment]})
        self.written[segment.extent] = self.writes
        self._put(item, index * CHUNK + start, segment.length)

    def append(self) -> None:
        item = self.file()
        if item is None or len(item.bytes) > 20 * CHUNK:
            return
        self.writes = self.writes % 255 + 1
        session, length = self.session, self.chance.randint(1, 2 * CHUNK)
        extent = session.new_extent()
        self.written[extent] = self.writes
        assert session.append(item.ino, (extent, length)) == len(item.bytes)
        self._put(item, len(item.bytes), length)

    def _put(self, item: Item, at: int, length: int) -> None:
        item.bytes.extend(bytes(max(0, at + length - len(item.bytes))))
        item.bytes[at : at + length] = bytes([self.writes]) * length

    def truncate(self) -> None:
        item = self.file()
        if item is not None:
            size = self.chance.choice([0, self.chance.randrange(6 * CHUNK)])
            assert self.session.setattr(item.ino, size=size).size == size
            item.bytes = item.bytes[:size] + bytes(max(0, size - len(item.bytes)))

    def reclaim(self) -> None:
        self.volume.reclaim()

    def expect_same(self) -> None:
        queue = [self.model.root]
        while queue:
            item = queue.pop()
            if not item.is_directory:
                self._expect_content(item)
                continue
            found = {name: ino for name, _, ino, _ in self.volume.listing(item.ino)}
            assert found == {name: below.ino for name, below in item.below.items()}
            queue += item.below.values()

    def _expect_content(self, item: Item) -> None:
        content = bytearray(self.volume.attributes(item.ino).size)
        for index, segments in self.volume.chunks(item.ino).items():
            for s in segments:
                at = index * CHUNK + s.offset
                content[at : at + s.length] = bytes([self.written[s.extent]]) * s.length
        assert content == item.bytes


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_verbs_leaves_a_sound_volume(make_volume: Callable[..., Volume], seed: int) -> None:
    """Names, content and every errno as the model has them; the seed is the test's parameter.

    With limits so small that maps go aside and are cut in steps all the time.
    """
    small = {"CHUNKS_PER_CALL_MAX": 4, "LISTED_CHUNKS_MAX": 8, "LET_GO_AT_ONCE_MAX": 2, "EXTENTS_PER_CALL_MAX": 3}
    run = Run(make_volume(**(small if seed % 2 else {})), seed)
    acts = [run.make, run.link, run.take_away, run.rename, run.write, run.write, run.append, run.truncate, run.reclaim]
    for step in range(STEPS):
        run.chance.choice(acts)()
        if step % 50 == 0:
            check_volume(run.volume)
    run.expect_same()
    run.volume.reclaim()
    run.expect_same()
    for session in run.sessions:
        run.volume.call("session_close", session.number)
    run.reclaim()
    shown = {s.extent for f in run.model.files() for segments in run.volume.chunks(f.ino).values() for s in segments}
    assert run.volume.condemned() | shown == run.written.keys()
