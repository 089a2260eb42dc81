"""Logs: JSON for machines, text at a terminal, and nothing that a request brings along can break them."""

import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest

from cacheyd.observe.logs import ACCESS, AccessLine, AccessLog, setup

LINE = AccessLine(
    at=1_700_000_000.25,
    method="GET",
    registry="docker.io",
    repository="library/nginx",
    reference="1.27",
    status=200,
    bytes=1234,
    cache="HIT",
    ms=1.2345,
    client="10.0.0.1:5000",
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("", "cacheyd", ACCESS)]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def written(*lines: AccessLine, as_json: bool) -> str:
    stream = io.StringIO()
    log = AccessLog(stream, as_json=as_json)
    for line in lines:
        log.write(line)
    log.close()
    return stream.getvalue()


def test_a_request_as_json() -> None:
    assert json.loads(written(LINE, as_json=True)) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "msg": "request",
        "method": "GET",
        "registry": "docker.io",
        "repository": "library/nginx",
        "reference": "1.27",
        "status": 200,
        "bytes": 1234,
        "cache": "HIT",
        "ms": 1.23,
        "client": "10.0.0.1:5000",
    }


def test_a_request_as_text() -> None:
    assert written(LINE, as_json=False) == (
        "2023-11-14T22:13:20.250Z GET docker.io/library/nginx 1.27 200 1234B HIT 1.2ms 10.0.0.1:5000\n"
    )


def test_a_note_is_there_only_if_there_is_one() -> None:
    broken = LINE._replace(note="the client has left")

    assert json.loads(written(broken, as_json=True))["note"] == "the client has left"
    assert written(broken, as_json=False).endswith("(the client has left)\n")


def test_lines_keep_their_order_and_none_is_lost() -> None:
    many = [LINE._replace(reference=str(i)) for i in range(2000)]

    found = [json.loads(line)["reference"] for line in written(*many, as_json=True).splitlines()]
    assert found == [str(i) for i in range(2000)]


ODD = ["\x00", "\r\nforged", "\x1b[2J", "\udcff", '"}', "🐳", "a" * 100_000, "\u2028"]


@pytest.mark.parametrize("text", ODD)
def test_odd_text_is_one_json_line(text: str) -> None:
    (line,) = written(LINE._replace(reference=text, note=text), as_json=True).split("\n")[:-1]
    assert json.loads(line)["reference"] == text


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("text", ODD)
def test_a_line_that_a_stream_cannot_write_takes_no_other_with_it(text: str, encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    log = AccessLog(stream, as_json=False)
    for line in (LINE._replace(reference="before"), LINE._replace(note=text), LINE._replace(reference="after")):
        log.write(line)
    log.close()
    stream.flush()

    assert b" before " in raw.getvalue()
    assert b" after " in raw.getvalue()


@pytest.mark.parametrize("text", ["\r\n2026-01-01T00:00:00.000Z GET forged", "\x1b[2J\x1b]0;title\x07", "\x9b2J"])
def test_a_line_at_a_terminal_is_one_line_without_control_characters(text: str) -> None:
    line = written(LINE._replace(note=text), as_json=False)
    assert line.endswith("\n")
    assert line[:-1].isprintable()


@pytest.mark.parametrize("as_json", [True, False])
def test_a_log_that_nobody_reads_any_more_stops_nothing(as_json: bool) -> None:
    log = AccessLog(Broken(), as_json=as_json)
    log.write(LINE)
    log.close()


def test_closing_ends_the_thread_writes_the_rest_and_may_be_repeated() -> None:
    before = set(threading.enumerate())
    stream = io.StringIO()
    log = AccessLog(stream, as_json=True)
    log.write(LINE)

    log.close()
    log.close()

    assert set(threading.enumerate()) == before
    assert stream.getvalue().count("\n") == 1
    log.write(LINE)


def test_without_a_stream_the_lines_go_to_a_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, ACCESS):
        log = AccessLog(None, as_json=False)
        log.write(LINE)
        log.close()

    assert caplog.messages == [LINE.text()]


# Everything that is not a request


def test_setup_is_json_unless_a_person_reads_it() -> None:
    stream = io.StringIO()
    log = setup(debug=False, stream=stream)
    logging.getLogger("cacheyd.x").info("cacheyd %s is listening", "1.0")
    log.write(LINE)
    log.close()

    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["msg"]) == ("info", "cacheyd 1.0 is listening")
    assert second["msg"] == "request"


def test_setup_is_text_at_a_terminal() -> None:
    stream = Terminal()
    log = setup(debug=False, stream=stream)
    logging.getLogger("cacheyd.x").info("listening")
    logging.getLogger("cacheyd.x").warning("disk full")
    log.write(LINE)
    log.close()

    first, second, third = stream.getvalue().splitlines()
    assert first.endswith("Z listening")
    assert second.endswith("Z warning: disk full")
    assert third.endswith(LINE.text())


@pytest.mark.parametrize("debug", [False, True])
def test_debug_is_for_cacheyd_alone(debug: bool) -> None:
    """mitmproxy's debug lines show heads, and so credentials."""
    stream = io.StringIO()
    setup(debug=debug, stream=stream).close()

    logging.getLogger("cacheyd.x").debug("ours")
    logging.getLogger("mitmproxy.x").info("theirs")
    logging.getLogger("mitmproxy.x").warning("a warning of theirs")

    assert ("ours" in stream.getvalue()) is debug
    assert '"theirs"' not in stream.getvalue()
    assert "a warning of theirs" in stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_an_exception_is_told_with_its_traceback(stream: io.StringIO) -> None:
    setup(debug=False, stream=stream).close()

    try:
        raise ValueError("\udcff odd")
    except ValueError:
        logging.getLogger("cacheyd.x").exception("a request failed")

    assert "Traceback" in stream.getvalue()
    assert "a request failed" in stream.getvalue()


def test_each_record_is_one_json_line() -> None:
    stream = io.StringIO()
    setup(debug=False, stream=stream).close()

    for text in ODD:
        logging.getLogger("cacheyd.x").info("%s", text)
    logging.getLogger("cacheyd.x").info("with fields", extra={"fields": {"path": object()}})

    found = [json.loads(line)["msg"] for line in stream.getvalue().split("\n")[:-1]]
    assert found == [*ODD, "with fields"]
