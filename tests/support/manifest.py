"""What tests/support/promises.py noted: which contents a directory must have, and which it may have besides."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import promises

GONE = "-"


@dataclass
class Manifest:
    """What the file system has promised, and what may be besides because a step was under way."""

    kept: dict[str, str] = field(default_factory=dict)
    possible: dict[str, set[str]] = field(default_factory=dict)
    """Contents that were tried after the last one that was kept."""
    logs: dict[str, int] = field(default_factory=dict)
    promised: int = 0

    def read(self, path: Path) -> None:
        for line in path.read_text().splitlines():
            word, name, what = line.split()
            if word == "log":
                self.logs[name] = int(what)
            elif word == "try":
                self.possible.setdefault(name, set()).add(what)
            else:
                self.kept[name] = what
                self.possible[name] = set()
            self.promised += word != "try"

    def check(self, directory: Path, names: set[str]) -> None:
        """Each of the names has a content that it may have; reads every byte."""
        for name in names & self.kept.keys():
            found = digest_of(directory / name)
            allowed = {self.kept[name]} | self.possible[name]
            assert found in allowed, f"{name}: {found} instead of {allowed}"
            # What is there now stays: a step that was under way has happened, or never will.
            self.kept[name], self.possible[name] = found, set()
        for name in names & self.logs.keys():
            content = (directory / name).read_bytes()
            assert len(content) >= self.logs[name], f"{name}: {len(content)} of {self.logs[name]} promised bytes"
            assert content == promises.content_of_log(len(content)), f"{name} is torn"

    @property
    def names(self) -> set[str]:
        return self.kept.keys() | self.logs.keys()


def digest_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return GONE
