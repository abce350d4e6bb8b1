"""The sample cases of the agent's kinds in cases/identity.yaml, which documents its own format."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.testing
import yaml
from google.protobuf.message import Message

from agent.errors import AttestationFailed, NoIdentity
from agent.schedule import rotation_delay
from mesh.api import (
    FETCH_JWT_BUNDLES,
    FETCH_JWT_SVID,
    FETCH_X509_BUNDLES,
    FETCH_X509_SVID,
    VALIDATE_JWT_SVID,
)
from mesh.grpc import GrpcError, Method, Status
from mesh.protos.workload_pb2 import (
    JWTBundlesRequest,
    JWTSVIDRequest,
    ValidateJWTSVIDRequest,
    X509BundlesRequest,
    X509SVIDRequest,
)
from tests.agent.test_workload_api import HTTPBIN, Workshop, reply
from tests.pki import NOW

CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "cases" / "identity.yaml").read_text()
)["cases"]


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c["id"]) for c in CASES if c["kind"] == "rotate_delay"]
)
def test_rotate_delay(case: dict[str, Any]) -> None:
    assert case["expect"] == "about"
    delay = rotation_delay(
        created=NOW + timedelta(seconds=case["created"]),
        not_after=NOW + timedelta(seconds=case["expires"]),
        now=NOW,
        random=Random(1),
        ratio=case["ratio"],
        jitter=case["jitter"],
    )
    assert delay.total_seconds() == pytest.approx(case["want_seconds"], abs=case["tolerance"])


CALLS: dict[str, tuple[Method[Any, Any], type[Message]]] = {
    "FetchX509SVID": (FETCH_X509_SVID, X509SVIDRequest),
    "FetchX509Bundles": (FETCH_X509_BUNDLES, X509BundlesRequest),
    "FetchJWTSVID": (FETCH_JWT_SVID, JWTSVIDRequest),
    "FetchJWTBundles": (FETCH_JWT_BUNDLES, JWTBundlesRequest),
    "ValidateJWTSVID": (VALIDATE_JWT_SVID, ValidateJWTSVIDRequest),
}

ATTESTED: dict[str, Exception] = {
    "error": AttestationFailed("cannot be told"),
    "none": NoIdentity("unknown"),
}


def camel(code: Status) -> str:
    return "OK" if code is Status.OK else code.name.title().replace("_", "")


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c["id"]) for c in CASES if c["kind"] == "workload_api"]
)
async def test_workload_api(
    case: dict[str, Any], nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    known = {"id", "kind", "title", "profile", "source", "note", "expect", "also_ok"}
    fields = set(case) - known - {"rpc", "attest"}
    workshop = Workshop(nursery)
    workshop.issue(HTTPBIN)
    workshop.publish_keys()
    workshop.answer = ATTESTED.get(case.get("attest", ""), workshop.answer)
    method, kind = CALLS[case["rpc"]]
    request = kind(**{name: case[name] for name in fields})
    code = Status.OK
    async with workshop.watch(method, request) as call:
        try:
            await reply(call)
        except GrpcError as error:
            code = error.code
    assert camel(code) in [case["expect"], *case.get("also_ok", ())]
