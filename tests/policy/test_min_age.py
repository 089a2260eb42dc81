"""`min_age`: a tag leads to a new image once that is old enough, and to the one before until then."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.faults.client import Reply
from tests.faults.daemon import Daemon
from tests.faults.scene import blob_target, eventually, manifest_target
from tests.policy.conftest import Starter
from tests.policy.lab import CONTAINERD, Lab, assert_denied, assert_ok, login
from tests.policy.origins import ChoosingOrigin, GuardedOrigin
from tests.real.cache import REPOSITORY
from tests.real.procs import wait_until
from tests.support.commands import names, run_command
from tests.support.images import OCI_MANIFEST, Blob, Image, Index, make_image, make_index
from tests.support.origin import Origin

METHODS = pytest.mark.parametrize("method", ["GET", "HEAD"])
CREATED = "org.opencontainers.image.created"
ALICE, BOB = "Bearer alice", "Bearer bob"
OLD, YOUNG = "2020-05-06T07:08:09.123456789Z", (datetime.now(UTC) - timedelta(minutes=10)).isoformat()
OF_CONTAINERD = {"Accept": CONTAINERD[0]}

REGISTRIES = """
[registries."held.test"]
upstream = "{o}"
min_age = "1h"
tag_ttl = "0s"
[registries."ttl.test"]
upstream = "{o}"
min_age = "1h"
tag_ttl = "1h"
[registries."brief.test"]
upstream = "{o}"
min_age = "1500ms"
tag_ttl = "1h"
[registries."allow.test"]
upstream = "{o}"
min_age = "1h"
min_age_action = "allow"
tag_ttl = "0s"
[registries."audit.test"]
upstream = "{o}"
min_age = "1h"
min_age_action = "audit"
tag_ttl = "0s"
[registries."seen.test"]
upstream = "{o}"
min_age = "1h"
min_age_evidence = "seen"
tag_ttl = "0s"
[registries."fickle.test"]
upstream = "{fickle}"
min_age = "1h"
tag_ttl = "0s"
[registries."verify.test"]
upstream = "{guarded}"
min_age = "1h"
tag_ttl = "1h"
access = "verify"
[registries."free.test"]
upstream = "{o}"
[registries."choosing.test"]
upstream = "{choosing}"
min_age = "1h"
tag_ttl = "0s"
[registries."choosy.test"]
upstream = "{choosing}"
min_age = "1h"
min_age_action = "allow"
tag_ttl = "0s"
[registries."pattern.test"]
upstream = "{o}"
min_age = "1h"
tag_ttl = "0s"
"""
AGES = 'min_ages = { "pattern.test/*:free-*" = "0s", "free.test/*:slow" = "1h", "free.test/*/img:slow" = "2h" }\n'


@pytest.fixture(scope="module")
def lab(shared: Starter) -> Lab:
    o, fickle, guarded = shared.origin(Origin()), shared.origin(Origin()), shared.origin(GuardedOrigin())
    choosing = shared.origin(ChoosingOrigin())
    config = AGES + REGISTRIES.format(o=o.url, fickle=fickle.url, guarded=guarded.url, choosing=choosing.url)
    return shared.lab(config, {"o": o, "fickle": fickle, "guarded": guarded, "choosing": choosing})


# Images of a certain age


def dated(number: int, created: object = None, annotation: object = None, architecture: str = "amd64") -> Image:
    """An image with these dates in its config and manifest; None is none."""
    plain = make_image(seed=70_000 + number, architecture=architecture)
    config = json.loads(plain.config.data)
    if created is not None:
        config["created"] = created
    blob = Blob(json.dumps(config).encode())
    manifest = json.loads(plain.manifest)
    manifest["config"] |= {"digest": blob.digest, "size": len(blob.data)}
    if annotation is not None:
        manifest["annotations"] = {CREATED: annotation}
    return Image(blob, plain.layers, json.dumps(manifest).encode(), plain.media_type, plain.platform)


def dated_index(number: int, created: object = None, annotation: object = None) -> Index:
    """An index of two platforms; both have `created`."""
    children = [dated(number, created, architecture=name) for name in ("arm64", "amd64")]
    plain = make_index(*children)
    if annotation is None:
        return plain
    content = json.loads(plain.manifest) | {"annotations": {CREATED: annotation}}
    return Index(plain.images, json.dumps(content).encode(), plain.media_type)


class Tag:
    """A tag of a repository that nobody has asked for."""

    def __init__(self, lab: Lab, registry: str = "held.test", tag: str = "1.0", origin: str = "o") -> None:
        self.lab, self.registry, self.tag, self.origin = lab, registry, tag, origin
        self.repo = lab.repo()
        self.target = manifest_target(self.repo, tag, registry)
        self.name = f"{registry}/{self.repo}:{tag}"

    def push(self, created: object = None, annotation: object = None) -> Image:
        image = dated(next(self.lab.numbers), created, annotation)
        self.lab.origins[self.origin].push(self.repo, self.tag, image)
        return image

    def index(self, created: object = None, annotation: object = None) -> Index:
        index = dated_index(next(self.lab.numbers), created, annotation)
        self.lab.origins[self.origin].push(self.repo, self.tag, index)
        return index

    def get(self, method: str = "GET", headers: Mapping[str, str] | None = None) -> Reply:
        # Different heads: the same one within the same second may be answered as before.
        agent = {"User-Agent": f"agent{next(self.lab.numbers)}"}
        return self.lab.get(self.target, {**OF_CONTAINERD, **agent, **(headers or {})}, method=method)

    def both(self, image: Image | Index, cache: str | None = None, headers: Mapping[str, str] | None = None) -> Reply:
        """HEAD and GET lead to this image; the answer to GET."""
        for method in ("HEAD", "GET"):
            reply = self.get(method, headers)
            assert reply.header("Docker-Content-Digest") == image.digest, (method, reply.cache)
            assert reply.header("Content-Type") == image.media_type
            assert (reply.status, reply.length) == (200, len(image.manifest))
            assert cache in (None, reply.cache), method
        assert reply.body == image.manifest
        return reply

    def served(self, image: Image | Index, headers: Mapping[str, str] | None = None) -> Image | Index:
        """The image is pulled, and what the tag is from then on."""
        reply = self.get(headers=headers)
        assert_ok(reply, image.manifest, "MISS")
        return image

    def old(self) -> Image:
        """The tag has led to this for long."""
        image = self.push(OLD)
        self.served(image)
        return image

    def refused(self) -> Reply:
        for method in ("HEAD", "GET"):
            reply = self.get(method)
            assert (reply.status, reply.cache) == (403, None), method
        assert_denied(reply)
        return reply

    def lines(self) -> list[str]:
        """What the log says of it."""
        found = (json.loads(line) for line in self.lab.cache.lines())
        return [line["msg"] for line in found if f"min_age: {self.name}:" in line.get("msg", "")]

    def asked(self) -> list[str]:
        """What upstream was asked about the tag."""
        asked = self.lab.asked(self.origin, self.repo)
        return [request.method for request in asked if request.path.endswith(f"/{self.tag}")]

    def held(self) -> list[dict[str, Any]]:
        """The rows of `cacheyd held`."""
        rows = json.loads(run_command(self.lab.cache, "held", "--json").stdout)
        return [row for row in rows if row["image"] == self.name]


def held_count(lab: Lab, registry: str, action: str) -> float:
    return lab.cache.metric("cacheyd_held_total", f'registry="{registry}"', f'action="{action}"')


# Held


@METHODS
def test_the_one_before_is_served_until_the_new_one_is_old_enough(lab: Lab, method: str) -> None:
    tag = Tag(lab)
    first = tag.old()
    count, requests = held_count(lab, "held.test", "held"), lab.cache.metric("cacheyd_requests_total", 'result="held"')
    second = tag.push(YOUNG)
    reply = tag.get(method)
    assert (reply.status, reply.cache, reply.header("Docker-Content-Digest")) == (200, "HELD", first.digest)
    tag.both(first, "HELD")
    warning = reply.header("Warning") or ""
    until = (datetime.fromisoformat(YOUNG) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert second.digest in warning
    assert until in warning
    (line,) = tag.lines()
    assert all(text in line for text in (first.digest, second.digest, until))
    assert held_count(lab, "held.test", "held") == count + 1
    assert lab.cache.metric("cacheyd_requests_total", 'result="held"') == requests + 3
    assert lab.cache.metric("cacheyd_tags_held") >= 1
    assert tag.asked()[1:] == ["HEAD"] * 3


@pytest.mark.parametrize("kind", ["image", "index"])
@pytest.mark.parametrize(
    ("created", "annotation", "old"),
    [
        (OLD, None, True),
        ("2020-05-06T07:08:09+02:00", None, True),
        (None, OLD, True),
        (OLD, OLD, True),
        (YOUNG, None, False),
        (None, YOUNG, False),
        (OLD, YOUNG, False),
        (None, None, False),
        ("1970-01-01T00:00:00Z", None, False),
        ("1980-01-01T00:00:01Z", "0001-01-01T00:00:00Z", False),
        ("1970-01-01T00:00:00Z", OLD, True),
        ("2999-01-01T00:00:00Z", None, False),
        ("yesterday", ["2020-05-06T07:08:09Z"], False),
        ({}, None, False),
    ],
)
def test_what_shows_an_age(lab: Lab, kind: str, created: object, annotation: object, old: bool) -> None:
    tag = Tag(lab)
    first = tag.old()
    content = tag.index(created, annotation) if kind == "index" else tag.push(created, annotation)
    tag.both(content if old else first, None if old else "HELD")


@pytest.mark.parametrize("annotation", [OLD, YOUNG])
def test_the_later_date_of_an_image_counts(lab: Lab, annotation: str) -> None:
    tag = Tag(lab)
    first = tag.old()
    tag.push(YOUNG if annotation == OLD else OLD, annotation)
    tag.both(first, "HELD")


def test_an_index_is_held_by_its_usual_platform(lab: Lab) -> None:
    """Nothing is asked for twice, and all that was fetched for it is there for the pull that follows."""
    tag = Tag(lab, "held.test")
    index = tag.index(OLD)
    tag.both(index)
    amd64 = dict(index.images)["linux/amd64"]
    lab.settle()
    before = len(lab.asked("o", tag.repo))
    assert_ok(lab.get(manifest_target(tag.repo, amd64.digest, "held.test")), amd64.manifest, "HIT")
    assert_ok(lab.get(blob_target(tag.repo, amd64.config.digest, "held.test")), amd64.config.data, "HIT")
    assert len(lab.asked("o", tag.repo)) == before
    paths = [request.path for request in lab.asked("o", tag.repo) if amd64.digest in request.path]
    assert len(paths) == 1


def test_one_who_forges_dates_is_seen_for_an_hour(lab: Lab) -> None:
    tag = Tag(lab, "seen.test")
    tag.push(OLD, OLD)
    tag.refused()
    (row,) = tag.held()
    assert "first seen here" in row["reason"]
    assert "created" not in row["reason"]


def test_what_was_seen_under_another_tag_of_the_repository_counts(lab: Lab) -> None:
    """A release candidate that becomes the release."""
    tag = Tag(lab, "brief.test", "stable")
    first = tag.push(OLD)
    tag.served(first)
    candidate = dated(next(lab.numbers))
    lab.origins["o"].push(tag.repo, "rc", candidate)
    other = manifest_target(tag.repo, "rc", "brief.test")
    assert lab.get(other).status == 403
    time.sleep(1.7)
    lab.origins["o"].push(tag.repo, "fresh", candidate)
    assert_ok(lab.get(manifest_target(tag.repo, "fresh", "brief.test")), candidate.manifest)
    # Of another repository nothing is known.
    elsewhere = lab.repo()
    lab.origins["o"].push(elsewhere, "rc", candidate)
    assert lab.get(manifest_target(elsewhere, "rc", "brief.test")).status == 403


# Nothing before it


@METHODS
def test_without_one_before_it_is_refused(lab: Lab, method: str) -> None:
    tag = Tag(lab, "ttl.test")
    image = tag.push(YOUNG)
    count = held_count(lab, "ttl.test", "refused")
    reply = tag.get(method)
    assert reply.status == 403
    left = (datetime.fromisoformat(YOUNG) + timedelta(hours=1) - datetime.now(UTC)).total_seconds()
    assert left - 5 < int(reply.header("Retry-After") or 0) <= left + 5
    reply = tag.refused()
    (error,) = json.loads(reply.body)["errors"]
    assert error["detail"]["digest"] == image.digest
    assert error["detail"]["until"] in error["message"]
    assert held_count(lab, "ttl.test", "refused") == count + 1
    # Upstream said so a moment ago.
    assert tag.asked() == [method]
    assert_ok(lab.get(manifest_target(tag.repo, image.digest, "ttl.test")), image.manifest)


@METHODS
def test_without_one_before_it_is_allowed_where_that_is_wanted(lab: Lab, method: str) -> None:
    tag = Tag(lab, "allow.test")
    first = tag.push(YOUNG)
    count = held_count(lab, "allow.test", "allowed")
    assert tag.get(method).header("Docker-Content-Digest") == first.digest
    tag.both(first)
    assert held_count(lab, "allow.test", "allowed") == count + 1
    tag.push(YOUNG)
    tag.both(first, "HELD")


@METHODS
def test_an_audit_only_says_so(lab: Lab, method: str) -> None:
    tag = Tag(lab, "audit.test")
    first = tag.push(OLD)
    tag.served(first)
    count = held_count(lab, "audit.test", "audited")
    second = tag.push(YOUNG)
    assert (tag.get(method).header("Docker-Content-Digest"), tag.get(method).header("Warning")) == (second.digest, None)
    tag.both(second)
    (line,) = tag.lines()
    assert "would be held until" in line
    assert first.digest in line
    assert held_count(lab, "audit.test", "audited") == count + 1
    assert tag.held() == []


# Moves


def test_a_tag_that_moves_on_and_back(lab: Lab) -> None:
    tag = Tag(lab)
    first = tag.old()
    second, third = tag.push(YOUNG), None
    tag.both(first, "HELD")
    third = tag.push()
    tag.both(first, "HELD")
    assert [row["digest"] for row in tag.held()] == [third.digest]
    assert [line for line in tag.lines() if third.digest in line]
    lab.origins["o"].push(tag.repo, tag.tag, second)
    tag.both(first, "HELD")
    lab.origins["o"].push(tag.repo, tag.tag, first)
    reply = tag.both(first, "REVALIDATED")
    assert reply.header("Warning") is None
    assert tag.held() == []


def test_it_is_served_when_its_time_has_come_without_another_question(lab: Lab) -> None:
    tag = Tag(lab, "brief.test")
    image = tag.push()
    tag.refused()
    asked = len(tag.asked())
    time.sleep(1.7)
    tag.both(image, "HIT")
    assert len(tag.asked()) == asked


def test_a_held_tag_costs_one_question_per_tag_ttl(own: Starter) -> None:
    origin = own.origin(Origin())
    lab = own.lab(f'[registries."slow.test"]\nupstream = "{origin.url}"\nmin_age = "2s"\ntag_ttl = "1500ms"\n', {"o": origin})
    tag = Tag(lab, "slow.test")
    first = tag.push(OLD)
    tag.served(first)
    time.sleep(1.6)
    second, began = tag.push(), time.monotonic()
    tag.both(first, "HELD")
    assert tag.asked() == ["GET", "HEAD"]
    time.sleep(max(0.0, began + 1.6 - time.monotonic()))
    tag.both(first, "HELD")
    tag.both(first, "HELD")
    assert tag.asked() == ["GET", "HEAD", "HEAD"]
    time.sleep(max(0.0, began + 2.2 - time.monotonic()))
    tag.both(second, "HIT")
    assert tag.asked() == ["GET", "HEAD", "HEAD"]
    assert lab.cache.metric("cacheyd_tags_held") == 0


@pytest.mark.parametrize("registry", ["choosing.test", "choosy.test"])
def test_each_client_keeps_what_it_had(lab: Lab, registry: str) -> None:
    """Registries give an index to some and one of its images to others; one who never had either is told so."""
    tag = Tag(lab, registry, origin="choosing")
    origin = lab.origins["choosing"]
    assert isinstance(origin, ChoosingOrigin)
    simple = {"Accept": OCI_MANIFEST}
    first, second = (dated_index(next(lab.numbers), created) for created in (OLD, YOUNG))
    origin.choose(tag.repo, tag.tag, first)
    tag.served(first)
    tag.served(first.images[0][1], simple)
    origin.choose(tag.repo, tag.tag, second)
    tag.both(first, "HELD")
    tag.both(first.images[0][1], "HELD", simple)
    other = Tag(lab, registry, origin="choosing")
    origin.choose(other.repo, other.tag, first)
    other.served(first)
    origin.choose(other.repo, other.tag, second)
    if registry == "choosing.test":
        assert other.get(headers=simple).status == 403
    else:
        other.both(second.images[0][1], headers=simple)
    other.both(first, "HELD")


# What is never held


def test_digests_and_blobs_are_never_held(lab: Lab) -> None:
    tag = Tag(lab)
    tag.old()
    second = tag.push(YOUNG)
    tag.get()
    for method in ("HEAD", "GET"):
        assert lab.get(manifest_target(tag.repo, second.digest, "held.test"), method=method).status == 200
        assert lab.get(blob_target(tag.repo, second.layers[0].digest, "held.test"), method=method).status == 200
    other = Tag(lab)
    third = other.push(YOUNG)
    assert_ok(lab.get(manifest_target(other.repo, third.digest, "held.test")), third.manifest, "MISS")
    other.refused()


@pytest.mark.parametrize(
    ("registry", "tag", "held"),
    [
        ("pattern.test", "1.0", True),
        ("pattern.test", "free-1", False),
        ("free.test", "1.0", False),
        ("free.test", "slow", True),
        ("held.test", "sha256-" + "a" * 64 + ".sig", False),
        ("held.test", "sha256-" + "a" * 64, False),
        ("held.test", "sha256-" + "a" * 63, True),
    ],
)
def test_which_tags(lab: Lab, registry: str, tag: str, held: bool) -> None:
    one = Tag(lab, registry, tag)
    image = one.push(YOUNG)
    if held:
        reply = one.refused()
        hours = 2 if registry == "free.test" else 1
        left = (datetime.fromisoformat(YOUNG) + timedelta(hours=hours) - datetime.now(UTC)).total_seconds()
        assert left - 5 < int(reply.header("Retry-After") or 0) <= left + 5
    else:
        one.both(image)


@pytest.mark.parametrize(
    ("ages", "reason"),
    [
        ('{ "Ghcr.io/Acme/*" = "1d" }', "no repository can have this name"),
        ('{ "ghcr.io/acme:1.0/x" = "1d" }', "no tag can have this name"),
        ('{ "https://ghcr.io" = "1d" }', "can never match"),
        ('{ "ghcr.io" = "soon" }', "a table such as"),
        ('["ghcr.io"]', "a table such as"),
    ],
)
def test_a_pattern_that_cannot_match_stops_the_start(own: Starter, ages: str, reason: str) -> None:
    file = own.directory / "c.toml"
    file.write_text(f"min_ages = {ages}\n")
    done = subprocess.run(
        [sys.executable, "-m", "cacheyd", "config", "check", "--config", str(file)],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert reason in done.stderr
    assert "min_ages" in done.stderr


# What goes wrong meanwhile


@METHODS
def test_the_one_before_is_fetched_by_its_digest_where_it_was_evicted(lab: Lab, method: str) -> None:
    tag = Tag(lab)
    first = tag.old()
    second = tag.push(YOUNG)
    tag.both(first, "HELD")
    lab.settle()
    lab.cache.blob_file(first.digest).unlink()
    reply = tag.get(method)
    assert (reply.status, reply.cache, reply.header("Docker-Content-Digest")) == (200, "HELD", first.digest)
    assert second.digest in (reply.header("Warning") or "")
    tag.both(first, "HELD")
    # The tag itself was asked for by HEAD only: a GET would be a pull.
    assert set(tag.asked()[1:]) == {"HEAD"}


@pytest.mark.parametrize("registry", ["held.test", "allow.test"])
@METHODS
def test_one_before_that_is_gone_everywhere_is_none(lab: Lab, method: str, registry: str) -> None:
    tag = Tag(lab, registry)
    first = tag.old()
    second = tag.push(YOUNG)
    tag.both(first, "HELD")
    lab.cache.blob_file(first.digest).unlink()
    lab.origins["o"].fault(first.digest, status=404)
    reply = tag.get(method)
    if registry == "held.test":
        assert reply.status == 403
        tag.refused()
        (row,) = tag.held()
        assert (row["digest"], row["served"]) == (second.digest, "")
    else:
        assert reply.header("Docker-Content-Digest") == second.digest
        tag.both(second)


def test_an_outage_serves_the_one_before(lab: Lab) -> None:
    tag = Tag(lab, "fickle.test", origin="fickle")
    first = tag.old()
    tag.push(YOUNG)
    tag.both(first, "HELD")
    fault = lab.origins["fickle"].fault(tag.repo, status=503)
    tag.both(first, "STALE")
    fault.remove()
    tag.both(first, "HELD")


@pytest.mark.parametrize("fault", [{"status": 404}, {"status": 500}, {"cut_after": 10}, {"corrupt_at": 10}])
def test_a_date_that_is_not_to_be_had_shows_no_age(lab: Lab, fault: Mapping[str, Any]) -> None:
    tag = Tag(lab, "fickle.test", origin="fickle")
    first = tag.old()
    second = tag.push(OLD)
    faulty = lab.origins["fickle"].fault(second.config.digest, **fault)
    tag.both(first, "HELD")
    faulty.remove()
    tag.both(first, "HELD")


@pytest.mark.parametrize("part", ["manifest", "config"])
def test_what_is_looked_into_may_be_compressed(lab: Lab, part: str) -> None:
    tag = Tag(lab, "fickle.test", origin="fickle")
    tag.old()
    index = tag.index(OLD)
    amd64 = dict(index.images)["linux/amd64"]
    digest = amd64.digest if part == "manifest" else amd64.config.digest
    lab.origins["fickle"].fault(digest, content_encoding="gzip")
    tag.both(index)


def test_clients_do_not_wait_for_a_date_forever(own: Starter) -> None:
    origin = own.origin(Origin())
    settings = {"progress_timeout": "10s"}
    lab = own.lab(one(origin, 'min_age = "1h"').replace('tag_ttl = "1h"', 'tag_ttl = "0s"'), {"o": origin}, settings)
    tag = Tag(lab, "one.test")
    first = tag.old()
    second = tag.push(OLD)
    origin.fault(second.config.digest, stall_at=5, stall_for=5.0)
    began = time.monotonic()
    assert_ok(tag.get(), first.manifest, "HELD")
    assert 3 < time.monotonic() - began < 5
    # The look went on meanwhile.
    eventually(lambda: tag.get().header("Docker-Content-Digest"), second.digest)
    tag.both(second)


def test_a_manifest_that_is_too_large_to_be_looked_into_is_held(lab: Lab) -> None:
    tag = Tag(lab)
    content = json.loads(dated(next(lab.numbers), OLD).manifest) | {"annotations": {CREATED: OLD, "x": "y" * (5 << 20)}}
    data = json.dumps(content).encode()
    lab.origins["o"].add_manifest(tag.repo, tag.tag, data, OCI_MANIFEST)
    tag.refused()


# Logins


def test_logins_are_asked_for_before_anything_is_said(lab: Lab) -> None:
    tag = Tag(lab, "verify.test", origin="guarded")
    guarded = lab.origins["guarded"]
    assert isinstance(guarded, GuardedOrigin)
    guarded.readers[tag.repo] = {ALICE}
    second = tag.push(YOUNG)
    for _ in range(2):
        reply = tag.get(headers=login(ALICE))
        assert_denied(reply)
        assert second.digest.encode() in reply.body
    reply = tag.get(headers=login(BOB))
    assert reply.status == 403
    assert second.digest.encode() not in reply.body
    assert reply.header("Retry-After") is None
    assert tag.get().status == 401
    first = tag.push(OLD)
    lab.cache.get(manifest_target(tag.repo, first.digest, "verify.test"), login(ALICE))
    run_command(lab.cache, "release", tag.name)
    assert_ok(tag.get(headers=login(ALICE)), second.manifest)
    reply = tag.get(headers=login(BOB))
    assert (reply.status, reply.header("Docker-Content-Digest")) == (403, None)


# Tools


def test_what_is_held_is_listed_and_let_through(lab: Lab) -> None:
    tag = Tag(lab, "ttl.test")
    first = tag.push(OLD)
    tag.served(first)
    other = Tag(lab, "ttl.test")
    second = other.push(YOUNG)
    other.refused()
    (row,) = other.held()
    assert (row["digest"], row["served"]) == (second.digest, "")
    assert row["since"] < time.time() < row["until"] < time.time() + 3600
    assert "younger than 1h: created 20" in row["reason"]
    text = run_command(lab.cache, "held").stdout.decode()
    assert other.name in text
    assert second.digest in text
    done = run_command(lab.cache, "release", other.name)
    assert names(done) == [f"released: {other.name} ({second.digest})"]
    other.both(second)
    assert other.held() == []
    assert names(run_command(lab.cache, "release", other.name, status=1)) == [f"not held: {other.name}"]
    run_command(lab.cache, "release", "No Image", status=2)


def test_a_digest_is_released_before_it_comes(lab: Lab) -> None:
    tag = Tag(lab)
    first = tag.old()
    second = dated(next(lab.numbers), YOUNG)
    run_command(lab.cache, "release", f"held.test/{tag.repo}@{second.digest}")
    tag.both(first)
    lab.origins["o"].push(tag.repo, tag.tag, second)
    tag.both(second)


def test_warming_says_what_is_held(lab: Lab) -> None:
    tag = Tag(lab)
    first = tag.old()
    second = tag.push(YOUNG)
    done = names(run_command(lab.cache, "warm", tag.name))
    assert any("in the cache (held until " in line and second.digest in line for line in done)
    assert lab.cache.has(first.layers[0].digest)
    assert not lab.cache.has(second.layers[0].digest)
    other = Tag(lab)
    other.push(YOUNG)
    done = names(run_command(lab.cache, "warm", other.name, status=1))
    assert any("too young (min_age)" in line for line in done)


def test_what_is_removed_is_known_no_more(lab: Lab) -> None:
    tag = Tag(lab)
    tag.old()
    tag.push(YOUNG)
    assert tag.get().cache == "HELD"
    run_command(lab.cache, "rm", tag.name)
    assert tag.held() == []
    tag.refused()


def test_an_imported_tag_is_what_it_is_imported_as(lab: Lab, own: Starter) -> None:
    tag = Tag(lab, "ttl.test")
    first = tag.push(YOUNG)
    tag.refused()
    file = own.directory / "images.tar"
    done = run_command(lab.cache, "warm", f"ttl.test/{tag.repo}@{first.digest}")
    assert names(done)[-1] == "1 of 1 image is in the cache"
    run_command(lab.cache, "export", f"ttl.test/{tag.repo}@{first.digest}", "-o", file)
    run_command(lab.cache, "import", file, "--name", tag.name)
    tag.both(first, "HIT")
    assert tag.held() == []


# One process after another, and other settings


class Reloading(Daemon):
    """A daemon whose settings change."""

    def reload(self, config: str) -> None:
        before = self.log_size()
        self.config_file.write_text(config)
        os.kill(self.pid, signal.SIGHUP)
        wait_until(lambda: any("reloaded" in line for line in self.lines(before)), "an answer to SIGHUP", seconds=5)


def one(origin: Origin, more: str = "", ages: str = "") -> str:
    return f'{ages}\n[registries."one.test"]\nupstream = "{origin.url}"\ntag_ttl = "1h"\n{more}\n'


def until_of(reply: Reply) -> str:
    """From when on it is served, as the refusal says."""
    return str(json.loads(reply.body)["errors"][0]["detail"]["until"])


def test_it_is_remembered_over_a_restart_and_forgotten_in_a_wipe(own: Starter) -> None:
    origin = own.origin(Origin())
    lab = own.lab(one(origin, 'min_age = "1h"'), {"o": origin})
    tag, new = Tag(lab, "one.test"), Tag(lab, "one.test")
    first = tag.old()
    second = new.push()
    until = until_of(new.refused())
    assert lab.cache.stop() == 0
    (row,) = json.loads(run_command(lab.cache, "held", "--json", "--config", lab.cache.config_file).stdout)
    assert row["digest"] == second.digest
    lab.cache.start()
    asked = len(new.asked())
    assert until_of(new.refused()) == until
    assert len(new.asked()) == asked
    tag.both(first, "HIT")
    assert lab.cache.stop() == 0
    shutil.rmtree(lab.cache.cache_dir)
    lab.cache.start()
    assert until_of(new.refused()) > until
    tag.both(first)


def test_a_release_holds_over_a_restart_and_without_a_daemon(own: Starter) -> None:
    origin = own.origin(Origin())
    lab = own.lab(one(origin, 'min_age = "1h"'), {"o": origin})
    tag = Tag(lab, "one.test")
    image = tag.push()
    tag.refused()
    assert lab.cache.stop() == 0
    run_command(lab.cache, "release", tag.name)
    lab.cache.start()
    tag.both(image)
    assert tag.held() == []


def test_other_settings_hold_for_what_is_there(own: Starter) -> None:
    origin = own.origin(Origin())
    daemon = own.daemon(one(origin), kind=Reloading)
    assert isinstance(daemon, Reloading)
    lab = Lab(daemon, {"o": origin}, own.numbers)
    tag = Tag(lab, "one.test", "latest")
    first = tag.push()
    tag.served(first)
    # What was served before it was switched on is known, whatever its age.
    daemon.reload(one(origin, 'min_age = "1h"\ntag_ttls = { "latest" = "1h" }'))
    tag.both(first, "HIT")
    daemon.reload(one(origin, 'min_age = "1h"'))
    second = tag.push()
    tag.both(first, "HELD")
    daemon.reload(one(origin, 'min_age = "1h"', 'min_ages = { "one.test/*:latest" = "2h" }'))
    tag.both(first, "HELD")
    assert tag.held()[0]["until"] - time.time() > 3700
    daemon.reload(one(origin, 'tag_ttls = { "latest" = "1h" }'))
    tag.both(second)
    assert tag.held() == []
    daemon.reload(one(origin, 'min_age = "1h"'))
    third = tag.push()
    tag.both(second, "HELD")
    daemon.reload(one(origin, 'min_age = "1h"\nmin_age_action = "audit"'))
    tag.both(third)


def test_a_wipe_under_a_running_cache(own: Starter) -> None:
    origin = own.origin(Origin())
    lab = own.lab(one(origin, 'min_age = "1h"', "").replace('tag_ttl = "1h"', 'tag_ttl = "0s"'), {"o": origin})
    tag = Tag(lab, "one.test")
    first = tag.push(OLD)
    tag.served(first)
    tag.push(YOUNG)
    tag.both(first, "HELD")
    shutil.rmtree(lab.cache.cache_dir)
    tag.both(first, "HELD")
