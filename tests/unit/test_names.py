"""Names are bytes; their text form loses nothing and is safe to print."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.protocol.limits import NAME_BYTES_MAX, PATH_BYTES_MAX
from servers.protocol.names import check_name, escape, split_path, unescape

NAMES = st.one_of(st.binary(max_size=60), st.text(max_size=30).map(lambda t: t.encode("utf-8", "surrogatepass")))


@given(NAMES)
def test_unescape_brings_back_every_name(name: bytes) -> None:
    assert unescape(escape(name)) == name


@given(NAMES)
def test_the_text_form_is_printable_unicode(name: bytes) -> None:
    """No control characters, no surrogates: JSON, terminals and logs take it as it is."""
    text = escape(name)
    assert text.isprintable()
    assert json.loads(json.dumps(text).encode()) == text
    text.encode("utf-8")


@given(NAMES, NAMES)
def test_different_names_have_different_texts(one: bytes, other: bytes) -> None:
    assert (escape(one) == escape(other)) == (one == other)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain name.txt", "plain name.txt"),
        ("größe 漢字".encode(), "größe 漢字"),
        (b"back\\slash", "back\\\\slash"),
        (b"new\nline", "new\\x0aline"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"\x1b[31m", "\\x1b[31m"),
        ("\u202e".encode(), "\\xe2\\x80\\xae"),
    ],
)
def test_what_the_text_looks_like(name: bytes, text: str) -> None:
    assert escape(name) == text
    assert unescape(text) == name


@pytest.mark.parametrize("text", ["\\", "a\\", "\\x", "\\xg0", "\\x1", "\\n", "a\\b"])
def test_a_lone_backslash_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="lone backslash"):
        unescape(text)


@given(NAMES)
def test_a_name_that_passes_can_be_a_directory_entry(name: bytes) -> None:
    is_good = 0 < len(name) <= NAME_BYTES_MAX and name not in (b".", b"..") and not set(name) & set(b"/\0")
    assert (check_name(name) is None) == is_good


@given(st.lists(NAMES.filter(lambda n: check_name(n) is None), max_size=5), st.integers(1, 3))
def test_a_path_splits_into_its_names(names: list[bytes], slashes: int) -> None:
    """However many slashes lead or separate."""
    assert split_path(b"/" * slashes + (b"/" * slashes).join(names) + b"/") == names


@pytest.mark.parametrize("path", [b"a/../b", b".", b"a/.", b"a\0b", b"x" * 256, b"a/" * (PATH_BYTES_MAX // 2 + 1)])
def test_paths_that_cannot_be(path: bytes) -> None:
    with pytest.raises(ValueError, match=r"name|path"):
        split_path(path)
