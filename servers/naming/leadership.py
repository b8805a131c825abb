"""In which epoch of leadership the present task acts: set for background jobs, 0 for all else.

The store sends it along with the internal work of a task, and the functions in Redis refuse it once
another naming server has led: a leader that slept through the end of its lease changes nothing.
"""

from __future__ import annotations

from contextvars import ContextVar

acting_epoch: ContextVar[int] = ContextVar("acting_epoch", default=0)
