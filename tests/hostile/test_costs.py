"""What a peer's bytes cost to parse: every parser, at the longest input that can reach it, in shapes that are slow."""

import ast
import importlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http

from cacheyd.admin import referrers
from cacheyd.cache import age, relaying, request
from cacheyd.observe import logs
from cacheyd.protocol import accept, codings, headers, hosts, media_types, platforms, ranges, registries, targets, urls
from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.reference import Kind, Reference
from cacheyd.proxy.inbound import head
from cacheyd.proxy.outbound import guard, intake, transport
from cacheyd.upstream import challenges, pulls, realms, retry_after, token_service
from cacheyd.upstream.port import UpstreamBroken

ROOT = Path(__file__).parents[2]
HEAD = 64 << 10
# CPU of one call (seconds). What is quadratic takes seconds at these lengths, what is not takes a few milliseconds.
MOST = 0.05
TRIES = 3

UNITS = (
    " ", "\t", ",", ", ", ";", '"', '" ', '\\', '\\"', "=", "==", "a", "a ", "0", "0 ", "a=", 'a="', ', a="b"', ', a="b\\"',
    ", a b", "a. ", "a.", "a-", "a_", "a__", "-", "/", "//", "/.", "a/", "/blobs/", "/tags/list", "%", "%41", "%4", "?", "?a",
    "&", "a&", "ns", "ns=&", "<", ">", "<>", "<a?b>", "?>", "q=0", "a;q=0", ";q=0.0", "a;", "W/", '"a",', "0-0,", "-", "9-",
    "bytes ", "1/", ":", "a:b", "[", "]", "@", "é", "\xff", "\x01", "./", "0x", "0.", "1.1.", "{", "[[", '{"a":', "\n", "\r\n",
    "a:b\r\n", "a\n", " \n",
)  # fmt: skip
ENDS = ("", "!", '"')


@dataclass(frozen=True)
class Case:
    """A parser. `covers` are the regexes behind it, as `module.name`; the name is a constant's or a function's."""

    name: str
    parse: Callable[[str], object]
    covers: tuple[str, ...] = ()
    start: str = ""
    longest: int = HEAD
    units: tuple[str, ...] = field(default=UNITS)


TAGS = Reference("reg.test", "app", Kind.TAGS, "", None, "reg.test")


def _as_lines(value: str) -> object:
    return accept.accepted_types(tuple(value[at : at + 40] for at in range(0, len(value), 40)))


def _take(name: str, value: str) -> object:
    fields = [(name.encode("latin-1"), value.encode("latin-1")), (value[:1000].encode("latin-1"), b"x")]
    return intake.take_head(http.Response(b"HTTP/1.1", 200, b"OK", http.Headers(fields), None, None, 0, 0))


def _next_head(value: str) -> None:
    buffer = head.HeadBuffer()
    buffer.__iadd__(value.encode("latin-1"))
    buffer.next_head()


def _lengths(value: str) -> object:
    head = value.encode("latin-1") + b"\r\n\r\n"
    return intake.problem_of(head) or intake.with_one_length(head)


def _decode(coding: str, value: str) -> object:
    return codings.decode(value.encode("latin-1"), [coding], 4 << 20)


def _access_line(value: str) -> str:
    return logs.AccessLine(0, "GET", "reg.test", value[:255], value[:135], 200, 1, "HIT", 1.0, "x", value).text()


HOST = (
    "hosts._HOST",
    "hosts._IPV6",
    "hosts._NUMBER",
    "hosts._PORT",
)
CASES = (
    Case("target", targets.parse_target, ("targets._ROUTE", "targets._TAGS_ROUTE",
         "reference.NAME",
         "reference.TAG", "digest.DIGEST"), "/v2/"),
    Case("query", targets.parse_target, (), "/v2/app/tags/list?"),
    Case("ns", registries.canonical_registry, HOST),
    Case("ns in brackets", registries.canonical_registry, HOST, "["),
    Case("host", hosts.canonical_host, HOST),
    Case("port", hosts.split_port, HOST, "host:"),
    Case("Accept", lambda value: accept.accepted_types((value,)), ("accept._types",)),
    Case("Accept lines", _as_lines, ("accept._types",)),
    Case("Range", ranges.parse_range, ("ranges._SPEC",), "bytes="),
    Case("If-Range", lambda value: ranges.if_range_holds(value, '"x"')),
    Case("If-None-Match", lambda value: request.Request("GET", TAGS, (), if_none_match=value).knows("sha256:x")),
    Case("Content-Range", ranges.parse_content_range, ("ranges._CONTENT_RANGE",)),
    Case("Content-Range's numbers", ranges.parse_content_range, (), "bytes 0-"),
    Case("Content-Length", lambda value: headers.content_length((("content-length", value),)),
         ("headers.content_length",)),
    Case("Retry-After", lambda value: retry_after.retry_after((("retry-after", value),)),
         ("retry_after._SECONDS", "retry_after._IMF", "retry_after._RFC850", "retry_after._ASCTIME")),
    Case("Connection", lambda value: headers.end_to_end((("connection", value),))),
    Case("ratelimit-remaining", pulls._REMAINING.fullmatch, ("pulls._REMAINING",)),
    Case("Link", lambda value: relaying._next_page(value, TAGS), ("relaying._next_page",)),
    Case("Link's query", lambda value: relaying._next_page(value, TAGS), (), "<x?", intake.MAX_VALUE),
    Case("challenges", lambda value: challenges.parse_challenges((("www-authenticate", value),)), ("challenges._value",)),
    Case("a challenge", challenges._challenges, ("challenges._value",), "Bearer ", challenges.CHALLENGES_MAX),
    Case("a challenge's realm", challenges._challenges, ("challenges._value",), 'Bearer realm="', challenges.CHALLENGES_MAX),
    Case("realm", lambda value: realms.realm_belongs(value, "https://reg.test", ("https://auth.test",)), (), "https://"),
    Case("token answer", lambda value: token_service._parse_token(value.encode()), ("token_service._TOKEN",),
         longest=token_service.ANSWER_MAX),
    Case("token", lambda value: token_service._parse_token(json.dumps({"token": value}).encode()), (),
         longest=token_service.ANSWER_MAX // 6),
    Case("URL", urls.parse_url, ("urls._URL", "urls._CONTROLS")),
    Case("URL's host", urls.parse_url, (), "https://"),
    Case("URL's path", urls.parse_url, (), "https://reg.test/"),
    Case("Location", lambda value: urls.resolve("https://reg.test/v2/", urls.from_field(value)),
         ("urls._SCHEME", "urls.resolve")),
    Case("Location's path", lambda value: urls.resolve("https://reg.test/v2/", value), (), "/"),
    Case("Location's scheme", lambda value: urls.resolve("https://reg.test/v2/", value), (), "https"),
    Case("name behind a proxy", guard.forbidden_name),
    Case("request head", lambda value: head.parse_head(value.encode("latin-1")),
         ("head._METHOD", "head._TARGET", "head._VERSION")),
    Case("request header", lambda value: head.parse_head(b"GET / HTTP/1.1\r\n" + value.encode("latin-1")),
         ("head._NAME", "head._VALUE")),
    Case("request body's length", lambda value: head._body_length((("content-length", value),), False),
         ("head._LENGTH",)),
    Case("absolute target", head._origin_form, ("head._origin_form",), "http://"),
    Case("bytes of a client", _next_head, ("head._BARE_LF", "head._EMPTY_LINES")),
    Case("headers to upstreams", transport._CONTROLS.search, ("transport._CONTROLS",)),
    Case("response header", partial(_take, "X"), ("intake._NAME", "intake._BREAK",
         "intake._VALUE")),
    Case("Content-Type", partial(_take, "Content-Type"), ("intake._CONTENT_TYPE",)),
    Case("raw response head", lambda value: intake.problem_of(value.encode("latin-1"))),
    Case("raw status line", lambda value: intake.problem_of(value.encode("latin-1")),
         ("intake._STATUS_LINE",), "HTTP/1.1 200 "),
    Case("raw Content-Length", _lengths, ("intake._LENGTHS",), "HTTP/1.1 200 OK\r\nContent-Length: "),
    Case("Content-Encoding", lambda value: codings.codings_of((("content-encoding", value),))),
    *(Case(f"{coding} body", partial(_decode, coding)) for coding in ("gzip", "deflate", "zstd")),
    Case("zstd frames", partial(_decode, "zstd"), (), "\x28\xb5\x2f\xfd"),
    Case("end of a response head", lambda value: intake._HEAD_END.search(value.encode("latin-1")),
         ("intake._HEAD_END", "intake._INTERIM")),
    Case("Link of a list", lambda value: referrers.next_query((("link", value),)), ("referrers.next_query",)),
    Case("Link's page", lambda value: referrers.next_query((("link", value),)), (), "<x?", intake.MAX_VALUE),
    Case("an image's date", age.parse_created, ("age._CREATED",)),
    Case("a date of many digits", age._CREATED.fullmatch, (), "2025-01-01T00:00:00."),
    Case("a digest's tag", age._OF_DIGEST.fullmatch, ("age._OF_DIGEST",), "sha256-" + "a" * 64 + "."),
    Case("access log", _access_line),
    # What an access line is made of has been parsed, and is short.
    Case("quoted in the log", logs._one_line, longest=4 << 10),
    Case("a manifest's media type", media_types.is_media_type, ("media_types._MEDIA_TYPE",), "application/"),
    Case("a manifest's platform", lambda value: platforms.normal_platform("linux", "arm", value),
         ("platforms._level", "platforms._PART"), "v"),
)  # fmt: skip
# Those of a challenge are tried one after the other.
CHALLENGE = tuple(f"challenges.{name}" for name in ("_WORD", "_SCHEME", "_TOKEN68", "_EQUALS", "_QUOTED", "_UNQUOTED", "_GAP"))

# Regexes that only see what an operator, or cacheyd itself, has written.
TRUSTED = {
    "load._URL_LOGIN": "settings, for the messages about them",
    "values._DURATION": "settings", "values._DURATION_PART": "settings", "values._SIZE": "settings",
    "values.duration": "settings", "values.share": "settings", "values.parse": "settings",
    "environment._SERVICE": "the environment", "environment._SERVICE_URL": "the same",
    "patterns.PART": "settings", "patterns._registry": "no wildcard in it",
    "pins._with_one_registry": "settings", "pins._read": "settings",
    "workloads._YAML_LINE": "files that an operator names", "documents._NO_TEXT": "the same",
    "images._BARE_DIGEST": "names in settings, arguments and such files",
    "patterns.glob": "settings, against names of at most 255 characters: see tests/unit/settings/test_rules.py",
    "credential_providers._PART": "answers of credential providers", "programs._NAMED": "their errors, 1,000 characters",
    "programs._LONG": "the same", "programs._USER_INFO": "the same", "programs.clean": "the same",
    "selection._SHORT_DIGEST": "arguments of commands", "selection.parse_target": "arguments of commands",
    "unpacking._BLOB": "archives that an operator imports", "unpacking._checked_path": "the same",
    "blobs._HEX": "names of files in the cache directory",
    "partial_files.IMPORT": "the same", "partial_files._FETCH": "the same",
}  # fmt: skip


def _cost(parse: Callable[[str], object], value: str) -> float:
    """The least CPU of some tries (seconds): a busy machine makes single ones longer."""
    best = float("inf")
    for _ in range(TRIES):
        started = time.thread_time()
        with suppress(ValueError, RequestError, UpstreamBroken, head.BadHead):  # Refused: that is an answer, too.
            parse(value)
        best = min(best, time.thread_time() - started)
        if best < MOST:
            break
    return best


def _values(case: Case) -> Iterator[str]:
    for unit in case.units:
        for end in ENDS:
            size = case.longest - len(case.start) - len(end)
            yield case.start + (unit * (size // len(unit) + 1))[:size] + end


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_input_costs_more_than_its_share(case: Case) -> None:
    for value in _values(case):
        cost = _cost(case.parse, value)
        assert cost < MOST, f"{cost:.3f} s for {len(value)} x {value[:40]!r}"


def _pattern(name: str) -> re.Pattern[Any] | None:
    """By `module.NAME`; wherever the module of that name stands."""
    module, _, constant = name.rpartition(".")
    for path in (ROOT / "cacheyd").rglob(f"{module}.py"):
        full = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if hasattr(importlib.import_module(full), constant):
            found = getattr(importlib.import_module(full), constant)
            return found if isinstance(found, re.Pattern) else None
    return None


@pytest.mark.parametrize("name", sorted({*CHALLENGE, *(name for case in CASES for name in case.covers)}))
def test_no_regex_costs_more_than_its_share(name: str) -> None:
    """Alone, at the length of a whole head, whatever stands before it."""
    if (pattern := _pattern(name)) is None:
        return
    binary = isinstance(pattern.pattern, bytes)
    for value in _values(Case(name, str)):
        cost = _cost(lambda text: pattern.fullmatch(text.encode("latin-1") if binary else text), value)
        assert cost < MOST, f"{cost:.3f} s for {value[:40]!r}"


def _regexes(tree: ast.AST, module: str, within: str = "") -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        name = within
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and not within:
            name = node.targets[0].id
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
        ):
            yield f"{module}.{name}"
        yield from _regexes(node, module, name)


def test_each_regex_is_here() -> None:
    """A new one needs a case that it is measured by, or a reason why no peer's bytes reach it."""
    found: set[str] = set()
    for path in (ROOT / "cacheyd").rglob("*.py"):
        source = path.read_text()
        assert "from re import" not in source
        found.update(_regexes(ast.parse(source), path.stem))
    measured = {*CHALLENGE, *(name for case in CASES for name in case.covers)}
    assert found - measured - set(TRUSTED) == set()
    assert (measured | set(TRUSTED)) - found == set()
