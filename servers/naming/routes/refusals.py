"""What a refusal looks like on the OpenAPI page: its status, and `detail` in the server's words."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Refusal(BaseModel):
    detail: str | list[Any]
    """A list, one item for each field, where fields are of the wrong kind."""


_MEANINGS = {
    400: "not a request",
    401: "the cluster secret is missing or wrong",
    404: "no such file",
    409: "it conflicts with what is there",
    422: "fields of the wrong kind",
    500: "Fewer than 3 storage servers available",
    503: "Redis, or the volume in it, cannot be worked with now",
    507: "Redis is full",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For `responses=` of a route."""
    return {status: {"model": Refusal, "description": _MEANINGS[status]} for status in (400, 401, 422, 503, *statuses)}
