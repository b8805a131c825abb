"""Judges a whole volume in Redis: every invariant that servers/naming/keyspace.py lists.

Reads all keys at rest; knows the formats, and nothing of the functions that wrote them.
"""

from __future__ import annotations

import re
import stat
from collections import Counter
from typing import Any

import msgpack

from servers.protocol import limits
from servers.protocol.geometry import Segment
from servers.protocol.ids import ExtentId, SessionNumber, extent_id
from servers.protocol.naming_api import Attributes, unpack_attributes, unpack_segments
from tests.support.volume import Volume

Maps = dict[str, dict[int, list[Segment]]]


def check_volume(volume: Volume) -> None:
    """Fails with everything that is wrong."""
    problems = _Checker(volume).problems()
    assert not problems, "the volume is damaged:\n" + "\n".join(problems)


class _Checker:
    def __init__(self, volume: Volume) -> None:
        self.redis = volume.client
        self.key = volume.key
        self.wrong: list[str] = []
        keys: list[bytes] = list(self.redis.scan_iter(match=re.sub(r"([{}\[\]*?])", r"\\\1", self.key) + ":*"))
        self.suffixes = {key[len(self.key) + 1 :].decode() for key in keys}
        self.facts = {k.decode(): v for k, v in self.redis.hgetall(f"{self.key}:volume").items()}
        self.inodes: dict[int, Attributes] = {
            int(s[2:]): unpack_attributes(int(s[2:]), self.redis.get(f"{self.key}:{s}")) for s in self._all("i")
        }
        self.entries = {int(s[2:]): self._entries(s) for s in self._all("d")}
        self.maps: Maps = {s: self._map(s) for s in (*self._all("m"), *self._all("t"))}
        self.purge = {m.decode() for m in self.redis.zrange(f"{self.key}:purge", 0, -1)}
        self.orphans = {int(i) for i in self.redis.zrange(f"{self.key}:orphans", 0, -1)}
        self.sessions = {int(s) for s in self.redis.zrange(f"{self.key}:sessions", 0, -1)}
        self.condemned = {ExtentId(e) for e in self.redis.zrange(f"{self.key}:condemned", 0, -1)}

    def problems(self) -> list[str]:
        self._check_keys()
        self._check_names()
        self._check_links()
        self._check_maps()
        self._check_extents()
        self._check_sessions()
        self._check_counters()
        return self.wrong

    def _expect(self, truth: object, what: str) -> None:
        if not truth:
            self.wrong.append(what)

    def _equal(self, found: object, wanted: object, what: str) -> None:
        self._expect(found == wanted, f"{what}: {found} instead of {wanted}")

    def _all(self, kind: str) -> list[str]:
        return [s for s in self.suffixes if s.startswith(kind + ":")]

    def _entries(self, suffix: str) -> dict[bytes, tuple[int, int]]:
        rows = self.redis.hgetall(f"{self.key}:{suffix}")
        return {name: tuple(msgpack.unpackb(blob)) for name, blob in rows.items()}

    def _map(self, suffix: str) -> dict[int, list[Segment]]:
        rows = self.redis.hgetall(f"{self.key}:{suffix}")
        return {int(index): unpack_segments(blob) for index, blob in rows.items()}

    def _number(self, name: str) -> int:
        return int(self.facts[name])

    def _check_keys(self) -> None:
        known = re.compile(
            r"volume|sessions|orphans|purge|condemned|condemned_nodes|collected|garbage|judged|long|snapshots|trash|trash_from"
            r"|thin|recount|dropped|fetching|survey|damaged|nodes|node_numbers|node_facts|doubted|draining|forgotten|log|leader"
            r"|[idnmao]:[1-9][0-9]*|t:[1-9][0-9]*:[1-9][0-9]*|(x|s|so|op):[1-9][0-9]*"
        )
        for suffix in self.suffixes:
            self._expect(known.fullmatch(suffix), f"an unknown key: {suffix}")

    def _check_names(self) -> None:
        for ino, entries in self.entries.items():
            by_cookie = {n: int(c) for n, c in self.redis.zrange(f"{self.key}:n:{ino}", 0, -1, withscores=True)}
            self._equal({n: c for n, (_, c) in entries.items()}, by_cookie, f"names by cookie of directory {ino}")
            cookies = list(by_cookie.values())
            self._equal(len(set(cookies)), len(cookies), f"different cookies in directory {ino}")
            self._expect(all(2 < c <= self._number("seq") + 2 for c in cookies), f"cookies of {ino}: {cookies}")
            directory = self.inodes.get(ino)
            self._expect(directory is not None and directory.is_directory, f"names in {ino}, which is no directory")
            for name in entries:
                self._expect(0 < len(name) <= limits.NAME_BYTES_MAX and b"/" not in name, f"name {name!r} in {ino}")
        for suffix in self._all("n"):
            self._expect(int(suffix[2:]) in self.entries, f"{suffix} without names")

    def _check_links(self) -> None:
        links = Counter(child for entries in self.entries.values() for child, _ in entries.values())
        for ino, inode in self.inodes.items():
            self._expect(ino <= self._number("next_ino"), f"inode {ino} is beyond next_ino")
            if inode.is_directory:
                self._check_directory(ino, inode, links[ino])
            else:
                self._equal(inode.nlink, links[ino], f"links of inode {ino}")
                self._equal(inode.parent, 0, f"parent of inode {ino}")
            self._equal(ino in self.orphans, inode.nlink == 0, f"whether inode {ino} is an orphan")
            held = self.redis.hlen(f"{self.key}:a:{ino}")
            self._equal(inode.xattrs, held, f"extended attributes of {ino}")
            self._equal(bool(inode.target), stat.S_ISLNK(inode.mode), f"target of {ino}")
            if inode.target:
                self._equal(inode.size, len(inode.target), f"size of symlink {ino}")
        for child in links:
            self._expect(child in self.inodes, f"a name of inode {child}, which is not there")
        for ino in self.orphans:
            self._expect(ino in self.inodes, f"orphan {ino} is not there")
        for suffix in (*self._all("a"), *self._all("o")):
            self._expect(int(suffix[2:]) in self.inodes or suffix[0] == "o", f"{suffix} of an inode that is not there")

    def _check_directory(self, ino: int, inode: Attributes, links: int) -> None:
        below = [c for c, _ in self.entries.get(ino, {}).values() if self.inodes[c].is_directory]
        if ino == 1:
            self._equal(inode.nlink, 2 + len(below), "links of the root")
            return
        self._equal(links, 1 if inode.nlink else 0, f"names of directory {ino}")
        self._equal(inode.nlink, 2 + len(below) if links else 0, f"links of directory {ino}")
        if links:
            self._expect(
                ino in {c for c, _ in self.entries.get(inode.parent, {}).values()}, f"{ino} is not in its parent"
            )
            seen, at = set(), ino
            while at != 1 and at not in seen:
                seen.add(at)
                at = self.inodes[at].parent
            self._equal(at, 1, f"the root above directory {ino}")

    def _check_maps(self) -> None:
        for suffix, chunks in self.maps.items():
            ino = int(suffix.split(":")[1])
            inode = self.inodes.get(ino)
            if suffix.startswith("t:") or inode is None:
                self._expect(suffix in self.purge, f"{suffix} is not going to be let go of")
                continue
            self._expect(inode.is_file, f"{suffix} of something that is no file")
            for index, segments in chunks.items():
                self._check_segments(ino, inode, index, segments)
        for ino, inode in self.inodes.items():
            held = sum(s.length for segments in self.maps.get(f"m:{ino}", {}).values() for s in segments)
            self._equal(inode.stored_bytes, held, f"stored bytes of {ino}")
        for name in self.purge:
            self._expect(name in self.maps, f"{name} is to be let go of, and is not there")

    def _check_segments(self, ino: int, inode: Attributes, index: int, segments: list[Segment]) -> None:
        where = f"chunk {index} of {ino}: {segments}"
        self._expect(segments, f"empty {where}")
        at = 0
        for s in segments:
            self._expect(s.offset >= at and s.length > 0 and s.extent_offset >= 0 and s.nodes, f"order in {where}")
            at = s.end
        self._expect(at <= inode.chunk_size, f"too long: {where}")
        self._expect(index * inode.chunk_size + at <= inode.size, f"beyond the size {inode.size}: {where}")

    def _check_extents(self) -> None:
        shown, aside = self._shown_by("m"), self._shown_by("t")
        owners: dict[ExtentId, tuple[int, set[int]]] = {}
        for suffix in self._all("x"):
            for counter, blob in self.redis.hgetall(f"{self.key}:{suffix}").items():
                ino, *indexes = msgpack.unpackb(blob)
                owners[extent_id(SessionNumber(int(suffix[2:])), int(counter))] = (ino, set(indexes))
                self._equal(len(indexes), len(set(indexes)), f"chunks of {suffix} {counter!r} once each")
        for extent, places in shown.items():
            ino, indexes = owners.get(extent, (0, set()))
            self._expect(
                {(ino, i) for i in indexes} >= places,
                f"{extent.hex()} is shown at {places}, known at {owners.get(extent)}",
            )
        for extent, (ino, indexes) in owners.items():
            places = shown.get(extent, set()) | aside.get(extent, set())
            self._expect(
                {(ino, i) for i in indexes} <= places, f"{extent.hex()} is known at {ino} {indexes}, shown at {places}"
            )
        self._check_sets_of_extents(owners)

    def _shown_by(self, kind: str) -> dict[ExtentId, set[tuple[int, int]]]:
        shown: dict[ExtentId, set[tuple[int, int]]] = {}
        for suffix, chunks in self.maps.items():
            if suffix.startswith(kind):
                for index, segments in chunks.items():
                    for s in segments:
                        shown.setdefault(s.extent, set()).add((int(suffix.split(":")[1]), index))
        return shown

    def _check_sets_of_extents(self, owners: dict[ExtentId, Any]) -> None:
        self._equal(self._number("extents"), len(owners), "extents")
        self._equal(
            {ExtentId(e) for e in self.redis.hkeys(f"{self.key}:condemned_nodes")}, self.condemned, "condemned_nodes"
        )
        self._expect(not self.condemned & owners.keys(), f"condemned and shown: {self.condemned & owners.keys()}")
        thin: set[ExtentId] = set()
        for suffix, chunks in self.maps.items():
            if self.redis.hexists(f"{self.key}:recount", suffix.split(":")[1]):
                continue
            inode = self.inodes.get(int(suffix.split(":")[1]))
            replicas = inode.replicas if inode is not None else self._number("replicas")
            thin |= {s.extent for segments in chunks.values() for s in segments if len(s.nodes) < replicas}
        recounted = {e for e, (ino, _) in owners.items() if not self.redis.hexists(f"{self.key}:recount", ino)}
        known = {ExtentId(e) for e in self.redis.smembers(f"{self.key}:thin")}
        self._equal(known & recounted, thin & recounted, "thin")
        self._expect(known <= owners.keys(), f"thin and not shown: {known - owners.keys()}")
        maps = [chunks for suffix, chunks in self.maps.items() if suffix.startswith("m")]
        listed = {(s.extent, n) for chunks in maps for c in chunks.values() for s in c for n in s.nodes}
        dropped = self.redis.zrange(f"{self.key}:dropped", 0, -1)
        both = listed & {(ExtentId(d[:16]), int.from_bytes(d[16:], "big")) for d in dropped}
        self._expect(not both, f"to be deleted where they are said to be: {both}")
        damaged = {ExtentId(field[:16]) for field in self.redis.hkeys(f"{self.key}:damaged")}
        self._expect(damaged <= owners.keys(), f"damaged and not shown: {damaged - owners.keys()}")

    def _check_sessions(self) -> None:
        by_inode = {
            (int(s), int(suffix[2:])) for suffix in self._all("o") for s in self.redis.hkeys(f"{self.key}:{suffix}")
        }
        by_session = {
            (int(suffix[3:]), int(i)) for suffix in self._all("so") for i in self.redis.smembers(f"{self.key}:{suffix}")
        }
        self._equal(by_inode, by_session, "open files by inode and by session")
        for kind in ("s", "so", "op"):
            for suffix in self._all(kind):
                self._expect(int(suffix.partition(":")[2]) in self.sessions, f"{suffix} of a session that is over")
        for suffix in self._all("op"):
            held = self.redis.hlen(f"{self.key}:{suffix}")
            self._expect(held <= limits.OP_WINDOW, f"{suffix} remembers {held} operations")
        self._expect(all(s <= self._number("next_session") for s in self.sessions), f"sessions {self.sessions}")

    def _check_counters(self) -> None:
        named = [i for i in self.inodes.values() if i.nlink]
        self._equal(self._number("directories"), sum(i.is_directory for i in named), "directories")
        self._equal(self._number("files"), sum(not i.is_directory for i in named), "files")
        self._equal(self._number("bytes"), sum(i.stored_bytes for i in self.inodes.values()), "bytes")
        entries = self.redis.xrevrange(f"{self.key}:log", count=1)
        last = int(entries[0][0].partition(b"-")[0]) if entries else 0
        self._expect(last <= self._number("seq"), f"the log ends at {last}, beyond seq {self._number('seq')}")
