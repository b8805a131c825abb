"""The seed's eight REST calls against whatever their OpenAPI page allows, and against what it does not."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.support.cluster import SECRET, Cluster
from tests.support.processes import is_healthy

CALLS = [
    ("POST", "/register_storage"),
    ("POST", "/files/init"),
    ("POST", "/files/{file_id}/chunks"),
    ("POST", "/files/{file_id}/finalize"),
    ("GET", "/files/{file_id}/chunks/{index}"),
    ("GET", "/files"),
    ("GET", "/files/{file_id}/size"),
    ("DELETE", "/files/{file_id}"),
]
EXAMPLES = 60
DOCUMENTED = "Fewer than 3 storage servers available"


@pytest.fixture(scope="module")
def naming() -> Iterator[Cluster]:
    """Without storage nodes but those that the calls register: placing a chunk is the documented 500."""
    with Cluster(nodes=0) as made:
        yield made


@pytest.fixture(scope="module")
def file_ids(naming: Cluster) -> list[str]:
    """One that is being filled, one that is finalized."""
    made = [naming.rest("POST", "/files/init", {"name": name}).json()["file_id"] for name in ("filling", "done")]
    assert naming.rest("POST", f"/files/{made[1]}/finalize", {}).status_code == 200
    return made


@pytest.fixture(scope="module")
def api(naming: Cluster) -> schemathesis.schemas.BaseSchema:
    headers = {"authorization": f"Bearer {SECRET}"}
    return schemathesis.openapi.from_url(naming.naming_url + "/openapi.json", headers=headers)


def test_the_page_has_the_eight_calls_with_examples(naming: Cluster) -> None:
    page = naming.rest("GET", "/openapi.json").json()
    for method, path in CALLS:
        assert method.lower() in page["paths"][path], path


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), CALLS)
def test_no_call_fails_inside(
    naming: Cluster,
    api: schemathesis.schemas.BaseSchema,
    file_ids: list[str],
    method: str,
    path: str,
    mode: GenerationMode,
) -> None:
    """No 5xx but the documented one; an answer is one that the page describes, and as it describes it."""
    chance = random.Random(1)

    @seed(1)
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=api[path][method].as_strategy(generation_mode=mode))
    def call(case: schemathesis.Case) -> None:
        if "file_id" in case.path_parameters and chance.random() < 0.5:
            case.path_parameters["file_id"] = chance.choice(file_ids)
        answer = case.call(headers={"authorization": f"Bearer {SECRET}"})
        if answer.status_code == 500 and DOCUMENTED in answer.text:
            return
        checks = [not_a_server_error, response_schema_conformance, status_code_conformance]
        case.validate_response(answer, checks=checks)

    call()
    assert is_healthy(naming.address)
