"""Parses Retry-After, the time for which an upstream wants no requests: in seconds, or as a date in three forms.

Sources: RFC 9110 sections 5.6.7 (the three forms of a date) and 10.2.3 (Retry-After).
"""

import re
import time
from datetime import UTC, datetime

from cacheyd.protocol.headers import HeaderList, header

# A longer wait is not a limit, but a mistake of the upstream (seconds).
ABSURD = 366 * 86400.0

_SECONDS = re.compile(r"[0-9]{1,9}")
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_IMF = re.compile(rf"[a-z]{{3}}, (?P<day>\d\d) (?P<month>[a-z]{{3}}) (?P<year>\d{{4}}) {_TIME} gmt", re.ASCII | re.IGNORECASE)
_RFC850 = re.compile(
    rf"[a-z]{{6,9}}, (?P<day>\d\d)-(?P<month>[a-z]{{3}})-(?P<year>\d\d) {_TIME} gmt", re.ASCII | re.IGNORECASE
)
_ASCTIME = re.compile(
    rf"[a-z]{{3}} (?P<month>[a-z]{{3}}) (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})", re.ASCII | re.IGNORECASE
)


def http_date(text: str, now: float) -> float | None:
    """The Unix time of an HTTP-date (RFC 9110 section 5.6.7); None if the text is not an HTTP-date.

    Reads a year of two digits by this section: the year is at most 50 years after `now`.
    """
    match = _IMF.fullmatch(text) or _RFC850.fullmatch(text) or _ASCTIME.fullmatch(text)
    if match is None:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:
        this = time.gmtime(now).tm_year
        year += this - this % 100
        year -= 100 if year > this + 50 else 0
    try:
        month = _MONTHS.index(match["month"].lower()) + 1
        # A leap second counts as the second before it.
        clock = int(match["hour"]), int(match["minute"]), 59 if match["second"] == "60" else int(match["second"])
        return datetime(year, month, int(match["day"]), *clock, tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def stated_wait(retry_after: str | None, date: str | None, now: float) -> float | None:
    """How long a Retry-After tells clients to wait (seconds); None if it is missing, invalid or absurd.

    A Retry-After date counts from the answer's own `date`, because the server's clock can differ; without `date`, it counts
    from `now` (Unix time). A date that has passed gives 0.
    """
    value = (retry_after or "").strip()
    if _SECONDS.fullmatch(value):
        wait = float(value)
    elif (until := http_date(value, now)) is not None:
        its_now = http_date((date or "").strip(), now)
        wait = max(0.0, until - (now if its_now is None else its_now))
    else:
        return None
    return wait if wait <= ABSURD else None


# How long a limit holds if the upstream does not say, and the longest that any limit holds (seconds).
RATE_LIMIT_DEFAULT, RATE_LIMIT_MAX = 1.0, 300.0


def wanted_wait(headers: HeaderList, now: float) -> float | None:
    """How long the Retry-After in these headers tells clients to wait (seconds); None if it is missing, invalid or absurd.

    `now` is Unix time.
    """
    return stated_wait(header(headers, "retry-after"), header(headers, "date"), now)


def retry_after(headers: HeaderList, now: float | None = None) -> float:
    """How long to wait by Retry-After, at most RATE_LIMIT_MAX (seconds); one second if the header says nothing."""
    wait = wanted_wait(headers, time.time() if now is None else now)
    return RATE_LIMIT_DEFAULT if wait is None else min(wait, RATE_LIMIT_MAX)
