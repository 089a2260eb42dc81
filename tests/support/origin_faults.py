"""Faults on purpose: the faults that a test can ask for, which request meets which fault, and the change of the answer."""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus
from typing import Literal, TypedDict

from tests.support.origin_http import Answer, Headers, Request, apply_range, without

How = Literal["fin", "rst"]


class FaultSpec(TypedDict, total=False):
    """The fields of a fault. All fields are optional and can be combined. Offsets count body bytes after Range and gzip.

    If a field closes the connection, `how` says in which way: "fin" (default; with TLS after close_notify) or "rst".
    Fields about the body change nothing in an answer without a body (HEAD, 204, 304).
    """

    # The answer
    status: int  # this status, with `headers` and `body` (default none), instead of the normal answer
    headers: Sequence[tuple[str, str]]  # without `status`: added to the normal answer, in place of the same names
    body: bytes  # without `status`: instead of the normal body; Range applies to it
    remove_headers: Sequence[str]  # last of all, so also Date; without Content-Length the body ends by close
    redirect: str  # Location, as given
    redirect_status: int  # default 307
    ignore_range: bool  # 200 and everything
    bad_content_range: bool  # a 206 whose Content-Range is one byte off and whose total is one too many
    content_encoding: Literal["gzip"]  # the body gzipped, and said so, whatever was accepted
    corrupt_at: int  # flips the bits of this byte; past the end, nothing

    # Framing
    length: int  # this Content-Length, the body as it is, then close
    chunked: bool  # Transfer-Encoding: chunked
    no_length: bool  # neither: the body ends by close
    extra: bytes  # sent behind the complete body; the connection stays open
    garbage: bytes  # these bytes instead of a response, then close

    # The connection and time (seconds)
    close_before_head: bool
    cut_after: int  # close after so many body bytes; when chunked, without the last chunk
    how: How
    stall_head: float  # before the head
    stall_at: int  # stop after so many body bytes,
    stall_for: float  # this long (default: until the client or the test ends)
    rate: float  # bytes per second
    hold: threading.Event  # wait for this after `hold_at` body bytes
    hold_at: int  # default 0: behind the head; -1: before the head


@dataclass(eq=False)
class Fault:
    """One fault; `hits` counts the requests that met it."""

    match: re.Pattern[str]
    times: int | None
    spec: FaultSpec
    _drop: Callable[[Fault], None]
    hits: int = 0

    def remove(self) -> None:
        """Removes the fault: no further request meets it. An answer that has begun goes on with the fault."""
        self._drop(self)


class Faults:
    """The faults in force."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, match: str, times: int | None, spec: FaultSpec) -> Fault:
        if unknown := spec.keys() - FaultSpec.__annotations__.keys():
            raise TypeError(f"not a fault: {', '.join(sorted(unknown))}")
        fault = Fault(re.compile(match), times, spec, self._drop)
        with self._lock:
            self._faults.insert(0, fault)
        return fault

    def meet(self, request: Request) -> FaultSpec:
        """The newest fault that matches `METHOD target`, or an empty one. Counts the hit."""
        with self._lock:
            for fault in self._faults:
                if fault.match.search(f"{request.method} {request.target}"):
                    fault.hits += 1
                    if fault.hits == fault.times:
                        self._faults.remove(fault)
                    return fault.spec
        return {}

    def _drop(self, fault: Fault) -> None:
        with self._lock:
            if fault in self._faults:
                self._faults.remove(fault)


@dataclass(frozen=True)
class Wire:
    """The bytes to write. `close` says that the connection ends after them."""

    head: bytes
    body: memoryview
    chunked: bool
    close: bool
    bodiless: bool


def shape(request: Request, answer: Answer, spec: FaultSpec) -> Wire:
    """The bytes for an answer, with the request's Range and the fault applied."""
    answer, body = _content(request, _replaced(answer, spec), spec)
    headers = answer.headers
    bodiless = request.method == "HEAD" or answer.status in (204, 304)
    chunked = spec.get("chunked", False)
    if answer.status not in (204, 304):
        headers += _framing(headers, len(body), spec)
    close = request.wants_close or spec.get("no_length", False)
    headers += (("Date", formatdate(usegmt=True)), *((("Connection", "close"),) if close else ()))
    headers = without(headers, list(spec.get("remove_headers", ())))
    framed = any(name.lower() in ("content-length", "transfer-encoding") for name, _ in headers)
    close = close or "length" in spec or not (framed or bodiless)
    return Wire(_head(answer.status, headers), memoryview(b"") if bodiless else body, chunked, close, bodiless)


def _replaced(answer: Answer, spec: FaultSpec) -> Answer:
    if "redirect" in spec:
        return Answer(spec.get("redirect_status", 307), (("Location", spec["redirect"]),))
    if "status" in spec:
        return Answer(spec["status"], body=spec.get("body", b""))
    return replace(answer, body=spec["body"]) if "body" in spec else answer


def _content(request: Request, answer: Answer, spec: FaultSpec) -> tuple[Answer, memoryview]:
    body = memoryview(answer.body)
    if not spec.get("ignore_range", False):
        answer, part = apply_range(request, answer)
        body = memoryview(answer.body)[part.start : part.end]
        if spec.get("bad_content_range", False) and answer.status == 206:
            wrong = f"bytes {part.start + 1}-{part.end}/{len(answer.body) + 1}"
            answer = answer.with_headers((("Content-Range", wrong),))
    if "content_encoding" in spec:
        body = memoryview(gzip.compress(body, compresslevel=1, mtime=0))
        answer = answer.with_headers((("Content-Encoding", "gzip"),))
    if 0 <= (offset := spec.get("corrupt_at", -1)) < len(body):
        body = memoryview(b"".join((body[:offset], bytes([body[offset] ^ 0xFF]), body[offset + 1 :])))
    return answer.with_headers(tuple(spec.get("headers", ()))), body


def _framing(headers: Headers, size: int, spec: FaultSpec) -> Headers:
    if spec.get("chunked", False):
        return (("Transfer-Encoding", "chunked"),)
    if spec.get("no_length", False) or any(name.lower() == "content-length" for name, _ in headers):
        return ()
    return (("Content-Length", str(spec.get("length", size))),)


def _head(status: int, headers: Headers) -> bytes:
    reasons = {code.value: code.phrase for code in HTTPStatus}
    lines = [f"HTTP/1.1 {status} {reasons.get(status, 'Unknown')}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join((*lines, "", "")).encode("latin-1")
