"""A program that changes files and notes in a manifest, elsewhere, what the file system has promised.

    python promises.py DIRECTORY MANIFEST SEED

Until the file system fails it; the errno is then on stderr. Each line of the manifest is written
before or after a step:

    try NAME DIGEST     NAME may have this content from now on ("-": it may be gone)
    kept NAME DIGEST    NAME has this content: the close, fsync, rename or unlink returned 0
    log NAME LENGTH     the file begins with the first so many bytes of its pattern

Stands alone, so that it starts quickly.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys


def content_of_log(length: int) -> bytes:
    """What an appended file holds: numbered lines, cut at the length."""
    lines = b"".join(b"%08d\n" % number for number in range(length // 9 + 1))
    return lines[:length]


class Promises:
    def __init__(self, directory: str, manifest: str, seed: int) -> None:
        self._directory = directory
        self._manifest = os.open(manifest, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._chance = random.Random(seed)
        self._seed = seed
        self._count = 0
        self._living: list[str] = []

    def keep_going(self) -> None:
        """Raises the OSError that ends it."""
        log = os.open(self._path(f"log-{self._seed}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        length = 0
        while True:
            self._count += 1
            self._chance.choice([self._make, self._make_synced, self._replace, self._replace, self._remove])()
            line = b"%08d\n" % (length // 9)
            assert os.write(log, line) == len(line)
            length += len(line)
            if self._count % 5 == 0:
                os.fsync(log)
                self._note("log", f"log-{self._seed}", str(length))

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _note(self, word: str, name: str, what: str) -> None:
        os.write(self._manifest, f"{word} {name} {what}\n".encode())

    def _data(self) -> tuple[bytes, str]:
        size = self._chance.choice((1, 100, 4096, 70_000, 300_000))
        data = self._chance.randbytes(min(size, 5000)) * (size // 5000 + 1)
        return data, hashlib.sha256(data).hexdigest()

    def _new_name(self) -> str:
        return f"{self._seed}-{self._count}"

    def _make(self) -> None:
        """A new file, promised by its close."""
        name, (data, digest) = self._new_name(), self._data()
        self._note("try", name, digest)
        descriptor = os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, data)
        os.close(descriptor)
        self._note("kept", name, digest)
        self._living.append(name)

    def _make_synced(self) -> None:
        """A new file, promised by fsync while it is open."""
        name, (data, digest) = self._new_name(), self._data()
        self._note("try", name, digest)
        descriptor = os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, data)
        os.fsync(descriptor)
        self._note("kept", name, digest)
        os.close(descriptor)
        self._living.append(name)

    def _replace(self) -> None:
        """Another content for one name, by writing a temporary file and renaming it."""
        data, digest = self._data()
        temporary, name = self._path(f"temporary-{self._seed}"), f"replaced-{self._seed}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, data)
        if self._chance.random() < 0.5:
            os.close(descriptor)
            descriptor = -1
        self._note("try", name, digest)
        os.rename(temporary, self._path(name))
        self._note("kept", name, digest)
        if descriptor >= 0:
            os.close(descriptor)

    def _remove(self) -> None:
        if len(self._living) > 3:
            name = self._living.pop(self._chance.randrange(len(self._living)))
            self._note("try", name, "-")
            os.unlink(self._path(name))
            self._note("kept", name, "-")


if __name__ == "__main__":
    try:
        Promises(sys.argv[1], sys.argv[2], int(sys.argv[3])).keep_going()
    except OSError as error:
        print(error.errno, file=sys.stderr)
