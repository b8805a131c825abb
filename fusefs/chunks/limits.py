"""How long, how often and how few: the terms on which extents are stored and fetched."""

from __future__ import annotations

from dataclasses import dataclass

from fusefs.chunks.replicas import EJECTED_AGAIN_SECONDS, EJECTED_SECONDS

PAUSE_SECONDS_FIRST = 0.1
PAUSE_SECONDS_MAX = 1.0
"""Between two rounds over the nodes; each pause is twice the one before."""


@dataclass(frozen=True, slots=True)
class Limits:
    min_write_replicas: int = 2
    """So many acknowledgements make a store a success; repair brings the rest."""
    write_deadline_seconds: float = 30.0
    read_deadline_seconds: float = 15.0
    first_byte_seconds: float = 2.0
    """A node that is asked for bytes answers within this."""
    hedge_seconds: float = 0.5
    """After this the next replica is asked as well."""
    unheard_seconds: tuple[float, ...] = (EJECTED_SECONDS, EJECTED_AGAIN_SECONDS)
    """Between two questions to a node that kept a reader waiting; the last one is kept to."""
    straggler_seconds: float = 2.0
    """A node that needs so much longer than the first one hangs, as far as a store is concerned."""
    trial_seconds: float = 0.5
    """What a node gets that failed this mount lately, before a store does without its copy."""
    silence_seconds: float = 10.0
    """A node that is sent bytes takes some, or answers, within this. Longer than a straggler
    gets: where all are slow, a busy disk is likelier than that all of them hang."""
