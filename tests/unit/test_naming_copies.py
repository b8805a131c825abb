"""What is told of missing copies, by `dcs status` and the metrics alike."""

from __future__ import annotations

import msgpack
import pytest

from servers.naming.copies import survey_of, under_replicated


@pytest.mark.parametrize(("stored_thin", "found", "told"), [(0, None, 0), (2, None, 2), (2, 7, 7), (7, 2, 7)])
def test_what_the_leader_found_counts_and_what_was_stored_with_too_few(
    stored_thin: int, found: int | None, told: int
) -> None:
    """A node's death makes copies missing that were all there when they were stored."""
    survey = b"" if found is None else msgpack.packb({"under_replicated": found})
    assert under_replicated({b"under_replicated": stored_thin, b"survey": survey}) == told


def test_before_a_leader_has_looked_nothing_is_found() -> None:
    assert survey_of({b"survey": b""}) == {}
