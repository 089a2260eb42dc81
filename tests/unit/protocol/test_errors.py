"""Failures as values, and the OCI JSON that is made of them."""

import dataclasses
import json
import re

import pytest

from cacheyd.protocol.errors import (
    Blame,
    Code,
    Failure,
    RequestError,
    cache_error,
    client_error,
    explain,
    reason,
    upstream_error,
)


def test_the_body_is_oci_error_json() -> None:
    error = client_error(400, Code.DIGEST_INVALID, "the digest is not valid", digest="sha256:x")

    assert json.loads(error.failure.body()) == {
        "errors": [
            {
                "code": "DIGEST_INVALID",
                "message": "the digest is not valid",
                "detail": {"from": "cacheyd", "digest": "sha256:x"},
            }
        ]
    }


@pytest.mark.parametrize(
    ("error", "status", "blame"),
    [
        (client_error(404, Code.MANIFEST_UNKNOWN, "no"), 404, Blame.CLIENT),
        (upstream_error(504, "late"), 504, Blame.UPSTREAM),
        (cache_error("broken"), 500, Blame.CACHE),
        (cache_error("starting", 503), 503, Blame.CACHE),
    ],
)
def test_each_kind_of_error_says_who_is_to_blame(error: RequestError, status: int, blame: Blame) -> None:
    assert (error.failure.status, error.failure.blame) == (status, blame)


def test_an_error_reads_well_in_a_log() -> None:
    assert str(upstream_error(502, "upstream: connection refused")) == "502 UNKNOWN: upstream: connection refused"


def test_a_client_error_can_bring_headers() -> None:
    error = client_error(405, Code.UNSUPPORTED, "no uploads", headers=(("Allow", "GET, HEAD"),))

    assert error.failure.headers == (("Allow", "GET, HEAD"),)
    assert b"Allow" not in error.failure.body()


@pytest.mark.parametrize("text", ['"', "\r\n\r\nHTTP/1.1 200 OK", "\x00", "\udcff", "🐳"])
def test_odd_text_in_an_error_stays_inside_the_json(text: str) -> None:
    body = client_error(400, Code.NAME_INVALID, text, name=text).failure.body()

    (error,) = json.loads(body)["errors"]
    assert error["message"] == error["detail"]["name"] == text
    assert re.fullmatch(rb"[\x20-\x7e]+", body)


def test_a_failure_does_not_change() -> None:
    failure = Failure(404, Code.BLOB_UNKNOWN, "no", Blame.CLIENT)

    with pytest.raises(dataclasses.FrozenInstanceError):
        failure.status = 200  # type: ignore[misc]


@pytest.mark.parametrize(("status", "phrase"), [(200, "OK"), (404, "Not Found"), (429, "Too Many Requests")])
def test_reason_phrases_are_the_usual_ones(status: int, phrase: str) -> None:
    assert reason(status) == phrase


@pytest.mark.parametrize("status", [299, 499, 599, 999])
def test_a_reason_phrase_is_never_empty(status: int) -> None:
    assert reason(status)


def test_an_exception_is_explained_in_one_short_line() -> None:
    try:
        raise KeyError("x" * 1000)
    except KeyError as error:
        line = explain(error)
    assert line.startswith("KeyError: 'xxx")
    assert line.endswith(", test_an_exception_is_explained_in_one_short_line)")
    assert len(line) < 500
    assert explain(ValueError()) == "ValueError: "
