"""What the command line means before anybody is asked: sizes, servers, secrets, messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from servers.admin.access import DEFAULT_NAMING_URL, find_access, find_naming_urls, secret_file
from servers.admin.commands import local
from servers.admin.commands.options import chunk_size
from servers.admin.errors import Problem, about, one_line
from servers.protocol.errors import Refused


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024", 1024), ("1KiB", 1024), ("1k", 1024), ("8MiB", 8 << 20), ("64M", 64 << 20), ("64 MB", 64 << 20)],
)
def test_a_chunk_size_may_have_a_unit(text: str, size: int) -> None:
    assert chunk_size(text) == size


@pytest.mark.parametrize("text", ["", "1000", "512", "128M", "-1", "8.5M", "eight", "1KiBs"])
def test_what_is_no_chunk_size_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        chunk_size(text)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCS_HOME", str(tmp_path))
    return tmp_path


def test_the_naming_server_is_the_given_one_then_the_local_clusters_then_the_usual(home: Path) -> None:
    assert find_naming_urls("http://a:1,http://b:2") == "http://a:1,http://b:2"
    assert find_naming_urls(None) == DEFAULT_NAMING_URL
    (home / "settings").write_text("DCS_REDIS_PORT=1\nDCS_NAMING_PORT=4321\nDCS_STORAGE_PORTS=5,6,7\n")
    assert find_naming_urls(None) == "http://127.0.0.1:4321"


def test_the_secret_comes_from_the_named_file_then_the_environment_then_home(home: Path, tmp_path: Path) -> None:
    (home / "secret").write_text("from home\n")
    (tmp_path / "named").write_text(" from file\n")
    named = {"DCS_SECRET_FILE": str(tmp_path / "named")}
    assert find_access("http://a:1", {}).secret == "from home"
    assert find_access("http://a:1", {"DCS_SECRET": "given"}).secret == "given"
    assert find_access("http://a:1", {**named, "DCS_SECRET": "given"}).secret == "from file"
    assert secret_file({"DCS_SECRET": "given"}) is None


@pytest.mark.parametrize("environment", [{}, {"DCS_SECRET": " "}, {"DCS_SECRET_FILE": "/nowhere/secret"}])
def test_no_secret_is_said_and_how_to_give_one(home: Path, environment: dict[str, str]) -> None:
    with pytest.raises(Problem, match="DCS_SECRET"):
        find_access("http://a:1", environment)


def test_what_no_header_can_hold_is_no_secret_and_does_not_show(home: Path) -> None:
    with pytest.raises(Problem, match="one line of ASCII") as caught:
        find_access("http://a:1", {"DCS_SECRET": "hush\nhush"})
    assert "hush" not in str(caught.value)


def test_the_secret_does_not_show(home: Path) -> None:
    assert "hush" not in repr(find_access("http://a:1", {"DCS_SECRET": "hush-hush"}))


def test_recover_says_where_it_runs_when_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the image of the mount there is no naming server."""
    monkeypatch.setattr(local, "find_spec", lambda name: None)
    with pytest.raises(Problem, match=r"python -m servers\.naming\.recover"):
        local.recover(None)  # type: ignore[arg-type]  # It is not looked at.


def test_an_error_is_one_printable_line() -> None:
    assert one_line(Problem("two\nlines \x1b[31m and a colour")) == "two lines [31m and a colour"
    assert one_line(FileNotFoundError(2, "No such file", "a\udcff\n")) == "a\\xff\\x0a: No such file"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(about(b"/a\xff", Refused(2, "lookup"))) == "/a\\xff: No such file or directory"
