"""The CRC32C of a whole from those of its parts."""

from __future__ import annotations

from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from servers.admin.crc_combine import combine


@given(st.lists(st.binary(max_size=300)))
def test_parts_laid_end_to_end_have_the_sum_of_the_whole(parts: list[bytes]) -> None:
    """Whatever the parts and their lengths, also when some are empty."""
    assert combine([crc32c(part) for part in parts], [len(part) for part in parts]) == crc32c(b"".join(parts))
