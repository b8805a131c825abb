"""What a storage node remembers of the volume whose extents it keeps."""

from __future__ import annotations

import pytest

from servers.storage.known_volume import KnownVolume

ONE, OTHER = "a" * 32, "b" * 32


def test_the_first_volume_is_kept_for_good(tmp_path) -> None:
    """Another one changes nothing, and neither does an earlier change of ours."""
    known = KnownVolume([tmp_path])
    assert (known.uuid, known.seq) == ("", 0)
    known.learn(ONE, 5)
    for uuid, seq in ((OTHER, 9), (ONE, 4), (ONE, 7)):
        known.learn(uuid, seq)
    again = KnownVolume([tmp_path])
    assert (again.uuid, again.seq) == (known.uuid, known.seq) == (ONE, 7)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff", b"a" * 32, b"a" * 32 + b" -1\n"])
def test_a_file_that_cannot_be_read_is_learnt_anew(tmp_path, content: bytes) -> None:
    (tmp_path / "volume").write_bytes(content)
    known = KnownVolume([tmp_path])
    assert known.uuid == ""
    known.learn(ONE, 1)
    assert KnownVolume([tmp_path]).uuid == ONE


@pytest.mark.parametrize(("uuid", "seq"), [("", 1), ("v", 1), (ONE, -1), (ONE + "\n", 1)])
def test_what_is_no_volume_is_refused(tmp_path, uuid: str, seq: int) -> None:
    with pytest.raises(ValueError, match="not a volume"):
        KnownVolume([tmp_path]).learn(uuid, seq)
