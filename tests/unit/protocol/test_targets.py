"""Request targets: what each client asks for, and what is refused at the edge."""

from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cacheyd.protocol.accept import (
    CACHED_ACCEPT,
    _types_cached,
    accepted_types,
)
from cacheyd.protocol.errors import Code, RequestError
from cacheyd.protocol.reference import MAX_NAME, Kind, Reference
from cacheyd.protocol.registries import canonical_registry
from cacheyd.protocol.targets import CACHED_TARGET, MAX_QUERY, MAX_TARGET, Page, _parse_cached, name_to_ask, parse_target
from tests.support.targets import outcome, parsed, refused

SHA256 = "sha256:" + "a1" * 32
SHA512 = "sha512:" + "b2" * 64


def target_of(ref: Reference) -> str:
    """The target that a client sends for a reference: with `ns` as it was given, else with the registry in the path."""
    path = ref.path.replace(f"/v2/{ref.repository}/", f"/v2/{name_to_ask(ref)}/", 1)
    if not ref.scoped:
        return path
    return f"{path}{'&' if '?' in path else '?'}ns={quote(ref.ns, safe='')}"


# containerd


def test_containerd_asks_for_a_tag() -> None:
    ref = parsed("/v2/library/nginx/manifests/1.27?ns=docker.io")

    assert ref == Reference("docker.io", "library/nginx", Kind.MANIFEST, "1.27", None, "docker.io")
    assert ref.path == "/v2/library/nginx/manifests/1.27"
    assert ref.scoped


def test_containerd_percent_encodes_the_port_in_ns() -> None:
    ref = parsed("/v2/lab/img/manifests/1.0?ns=127.0.0.1%3A16001")

    assert (ref.registry, ref.ns, ref.repository) == ("127.0.0.1:16001", "127.0.0.1:16001", "lab/img")


@pytest.mark.parametrize("digest", [SHA256, SHA512])
def test_a_digest_is_known_as_one(digest: str) -> None:
    assert parsed(f"/v2/lab/img/manifests/{digest}?ns=ghcr.io").digest == digest
    assert parsed(f"/v2/lab/img/blobs/{digest}?ns=ghcr.io").kind is Kind.BLOB
    assert parsed(f"/v2/lab/img/blobs/{quote(digest, safe='')}?ns=ghcr.io").digest == digest


def test_ns_wins_over_a_host_in_the_path() -> None:
    ref = parsed("/v2/mirror.example/app/manifests/1?ns=ghcr.io")

    assert (ref.registry, ref.repository) == ("ghcr.io", "mirror.example/app")


def test_what_goes_upstream_for_objects_has_no_query() -> None:
    assert parsed(f"/v2/a/blobs/{SHA256}?ns=ghcr.io&x=1").path == f"/v2/a/blobs/{SHA256}"


# skopeo, podman and docker: no ns


@pytest.mark.parametrize(
    ("name", "registry", "repository"),
    [
        ("ghcr.io/acme/app", "ghcr.io", "acme/app"),
        ("localhost/app", "localhost", "app"),
        ("registry:5000/app", "registry:5000", "app"),
        ("docker.io/library/nginx", "docker.io", "library/nginx"),
        ("index.docker.io/library/nginx", "docker.io", "library/nginx"),
    ],
)
def test_without_ns_the_first_component_is_the_registry_if_it_looks_like_a_host(
    name: str, registry: str, repository: str
) -> None:
    ref = parsed(f"/v2/{name}/manifests/1.0")

    assert (ref.registry, ref.repository, ref.ns, ref.scoped) == (registry, repository, "", False)


def test_without_ns_and_host_the_default_registry_is_meant() -> None:
    assert parsed("/v2/library/nginx/manifests/1.27", "docker.io").registry == "docker.io"
    assert parsed("/v2/ghcr.io/acme/app/manifests/1", "docker.io").registry == "ghcr.io"


def test_without_any_registry_the_error_says_what_is_missing() -> None:
    with pytest.raises(RequestError) as caught:
        parse_target("/v2/library/nginx/manifests/1.27")

    assert caught.value.failure.status == 400
    assert "ns" in caught.value.failure.message


# ns and the registry in the path: containerd's override_path, buildkit's mirrors


@pytest.mark.parametrize(
    ("path", "ns", "registry", "repository"),
    [
        ("reg.test/app", "reg.test", "reg.test", "app"),
        ("reg.test/lab/app", "reg.test", "reg.test", "lab/app"),
        ("Reg.Test/app", "reg.test", "reg.test", "app"),
        ("reg.test:443/app", "reg.test", "reg.test", "app"),
        ("reg.test/app", "reg.test:443", "reg.test", "app"),
        ("reg.test:5000/app", "reg.test%3A5000", "reg.test:5000", "app"),
        ("reg.test%3A5000/app", "reg.test:5000", "reg.test:5000", "app"),
        ("%5B::1%5D:5000/app", "%5B::1%5D:5000", "[::1]:5000", "app"),
        ("127.1:5000/app", "127.0.0.1:5000", "127.0.0.1:5000", "app"),
        ("localhost/app", "localhost", "localhost", "app"),
        ("docker.io/library/nginx", "docker.io", "docker.io", "library/nginx"),
        ("docker.io/library/nginx", "registry-1.docker.io", "docker.io", "library/nginx"),
        ("index.docker.io/library/nginx", "docker.io", "docker.io", "library/nginx"),
        ("docker.io/nginx", "docker.io", "docker.io", "library/nginx"),
        # A repository that is called as its registry is reached by naming the registry once more.
        ("reg.test/reg.test/app", "reg.test", "reg.test", "reg.test/app"),
        # Another registry's name is part of the repository's, as in registries that mirror others.
        ("docker.io/library/nginx", "harbor.test", "harbor.test", "docker.io/library/nginx"),
        ("reg.test/app", "reg.test:5000", "reg.test:5000", "reg.test/app"),
        ("reg.test:5000x/app", "reg.test", "reg.test", None),
        # What has neither dot nor port is no registry to docker, and often the name of a project.
        ("gitea/gitea", "gitea", "gitea", "gitea/gitea"),
        ("reg.test", "reg.test", "reg.test", "reg.test"),
        ("reg.test/", "reg.test", "reg.test", None),
        ("reg.test//app", "reg.test", "reg.test", None),
        ("reg.test/App", "reg.test", "reg.test", None),
        # By ns alone it is what the client would ask Docker Hub for.
        ("nginx", "docker.io", "docker.io", "nginx"),
    ],
)
@pytest.mark.parametrize(
    "tail", ["manifests/1.0", f"manifests/{SHA256}", f"blobs/{SHA256}", f"referrers/{SHA256}", "tags/list"]
)
def test_the_path_may_name_the_registry_of_ns_again(
    path: str, ns: str, registry: str, repository: str | None, tail: str
) -> None:
    target = f"/v2/{path}/{tail}?ns={ns}"
    if repository is None:
        assert refused(target) == (400, Code.NAME_INVALID)
        return
    ref = parsed(target)
    assert (ref.registry, ref.repository, ref.ns) == (registry, repository, unquote(ns))
    assert ref.path == f"/v2/{repository}/{tail}"
    assert parsed(target_of(ref)) == ref


@pytest.mark.parametrize("hub", ["docker.io", "index.docker.io", "registry-1.docker.io", ""])
def test_images_of_one_part_are_in_library(hub: str) -> None:
    """As warm and docker read them; what has a folder stays, and so do other registries' names."""
    prefix = f"{hub}/" if hub else ""
    for name, repository in (("nginx", "library/nginx"), ("library/nginx", "library/nginx"), ("acme/app", "acme/app")):
        for tail in ("manifests/latest", f"blobs/{SHA256}", "tags/list"):
            assert parsed(f"/v2/{prefix}{name}/{tail}", "docker.io").name == f"docker.io/{repository}"
    assert parsed("/v2/ghcr.io/app/manifests/1").name == "ghcr.io/app"
    assert parsed("/v2/app/manifests/1", "ghcr.io").name == "ghcr.io/app"


def test_names_of_one_part_are_checked_as_all_names() -> None:
    for name in ("docker.io/", "docker.io/NGINX", "docker.io/.x", "docker.io/" + "a" * MAX_NAME):
        assert refused(f"/v2/{name}/manifests/latest") == (400, Code.NAME_INVALID)


# ns


def test_an_empty_ns_is_none() -> None:
    assert parsed("/v2/ghcr.io/app/manifests/1?ns=").registry == "ghcr.io"
    assert refused("/v2/app/manifests/1?ns=") == (400, Code.NAME_INVALID)


# Names, tags and digests


@pytest.mark.parametrize("name", ["a", "library/nginx", "a/b/c/d", "a.b", "a_b", "a__b", "a---b", "0", "a" * 255])
def test_repository_names(name: str) -> None:
    assert parsed(f"/v2/{name}/manifests/1?ns=ghcr.io").repository == name


@pytest.mark.parametrize(
    "name",
    ["A", "library/Nginx", "a..b", "a___b", "-a", "a-", "a//b", "a/", "/a", "a/../b", "..", "a b", "a%20b", "ä", "a" * 256,
     "a%00b", "a%0Ab/c", "a:b", "a@b"],
)  # fmt: skip
def test_names_that_no_repository_has(name: str) -> None:
    status, _ = refused(f"/v2/{name}/manifests/1?ns=ghcr.io")
    assert status in (400, 404)


@pytest.mark.parametrize("tag", ["latest", "1.27.3-alpine", "_x", "A", "v1", "1" * 128])
def test_tags(tag: str) -> None:
    ref = parsed(f"/v2/a/manifests/{tag}?ns=ghcr.io")
    assert (ref.reference, ref.digest) == (tag, None)


@pytest.mark.parametrize("tag", [".INVALID_MANIFEST_NAME", "-x", "1" * 129, "a b", "", "ä", "a%00", "a%0A", "a+b", "a@b"])
def test_a_tag_that_cannot_be_is_unknown(tag: str) -> None:
    assert refused(f"/v2/a/manifests/{tag}?ns=ghcr.io") == (404, Code.MANIFEST_UNKNOWN)


@pytest.mark.parametrize(
    "digest",
    ["sha256:baddigeststring", "sha256:" + "a" * 63, "sha256:" + "a" * 65, SHA256.upper(), "sha256:" + "A1" * 32, "sha256:",
     "md5:" + "a" * 32, "sha512:" + "a" * 64, ":", "sha256:" + "g" * 64, SHA256 + "%0A", "sha256%3A..%2F"],
)  # fmt: skip
def test_a_digest_that_is_none(digest: str) -> None:
    status, code = refused(f"/v2/a/manifests/{digest}?ns=ghcr.io")
    assert (status, code) == (400, Code.DIGEST_INVALID) or (digest.endswith("F") and status == 404)


@pytest.mark.parametrize("what", ["blobs", "referrers"])
def test_blobs_and_referrers_have_digests_only(what: str) -> None:
    assert refused(f"/v2/a/{what}/latest?ns=ghcr.io") == (400, Code.DIGEST_INVALID)


# Tag lists and referrers


@pytest.mark.parametrize(
    ("query", "upstream"),
    [
        ("ns=ghcr.io", ""),
        ("n=3&ns=ghcr.io&last=1.0", "n=3&last=1.0"),
        ("ns=ghcr.io&last=a%2Fb+c%20d", "last=a%2Fb+c%20d"),
        ("last=%C3%BC&ns=ghcr.io", "last=%C3%BC"),
        ("n%73=ghcr.io&n=0", "n=0"),
        ("ns=ghcr.io&ns=quay.io&n=1", "n=1"),
        ("ns=ghcr.io&nsx=1&xns=2&flag", "nsx=1&xns=2&flag"),
        ("ns=ghcr.io&a=b=c", "a=b=c"),
    ],
)
def test_the_query_goes_upstream_byte_for_byte_without_ns(query: str, upstream: str) -> None:
    tags = parsed(f"/v2/a/b/tags/list?{query}")
    referrers = parsed(f"/v2/a/b/referrers/{SHA256}?{query}")

    suffix = f"?{upstream}" if upstream else ""
    assert tags.registry == referrers.registry == "ghcr.io"
    assert tags.path == f"/v2/a/b/tags/list{suffix}"
    assert referrers.path == f"/v2/a/b/referrers/{SHA256}{suffix}"


def test_a_repository_may_be_called_like_a_route() -> None:
    assert parsed("/v2/manifests/manifests/manifests?ns=ghcr.io").repository == "manifests"
    assert parsed(f"/v2/a/blobs/b/blobs/{SHA256}?ns=ghcr.io").repository == "a/blobs/b"
    assert parsed("/v2/tags/list/tags/list?ns=ghcr.io").repository == "tags/list"


# cacheyd's own pages, and what is not there


@pytest.mark.parametrize(
    ("target", "page"),
    [
        ("/", "/"),
        ("/v2/", "/v2/"),
        ("/v2", "/v2/"),
        ("/v2/?ns=docker.io", "/v2/"),
        ("/metrics", "/metrics"),
        ("/healthz", "/healthz"),
        ("/readyz?verbose", "/readyz"),
    ],
)
def test_pages(target: str, page: str) -> None:
    assert parse_target(target) == Page(page)


@pytest.mark.parametrize(
    "target",
    ["", "/v1/", "/v2/a", "/v2/_catalog", "/v2/a/manifests", "/v2/a/uploads/", "/v2/manifests/1", "/v2//manifests/1x/",
     "/metrics/", "//v2/", "/v2/a/tags", "/v2/a/tags/list/", f"/v2/a/blobs/{SHA256}/x", "/favicon.ico", "*"],
)  # fmt: skip
def test_paths_that_are_not_there(target: str) -> None:
    assert refused(target) == (404, Code.UNSUPPORTED)


# Any input


TARGETS = st.one_of(
    st.text(),
    st.text().map(lambda text: f"/v2/{text}"),
    st.builds(
        "/v2/{}/{}/{}?ns={}&{}".format,
        st.sampled_from(
            [
                "a",
                "library/nginx",
                "ghcr.io/app",
                "A",
                "a//b",
                "%61",
                "localhost/x",
                "ghcr.io/ghcr.io/a",
                "docker.io/docker.io/a",
                "Docker.io/a",
                "index.docker.io/",
                "[::1]/a",
                "reg:5000/reg:5000/a",
            ]
        ),
        st.sampled_from(["manifests", "blobs", "referrers", "tags"]),
        st.sampled_from(["latest", "list", SHA256, SHA512, "sha256:x", "%6catest", "", "."]),
        st.one_of(st.sampled_from(["docker.io", "", "ghcr.io", "reg%3A5000", "b%C3%BCcher.example", "%5B::1%5D"]), st.text()),
        st.one_of(st.sampled_from(["", "n=3", "n=%20+&last=x", "ns=ghcr.io", "%6es=x&y"]), st.text()),
    ),
)


@given(TARGETS, st.sampled_from(["", "docker.io", "ghcr.io"]))
@example("/v2/a/manifests/1?ns=%ED%A0%80", "")
@example("/v2/a/manifests/1?ns=\udc80", "")
def test_any_target_is_a_reference_or_refused(target: str, default_registry: str) -> None:
    result = outcome(parse_target, target, default_registry)
    if isinstance(result, RequestError):
        assert 400 <= result.failure.status < 500
        assert result.failure.body()
        return
    if isinstance(result, Page):
        return
    assert result.path.startswith("/v2/")
    assert canonical_registry(result.registry) == result.registry
    assert parse_target(target_of(result)) == result


# What is too long


@pytest.mark.parametrize(
    "target",
    [
        "/v2/a/manifests/1?ns=ghcr.io&x=" + "a" * MAX_TARGET,
        "/" + "a" * MAX_TARGET,
        "/v2/a/tags/list?ns=ghcr.io&last=" + "a" * (MAX_QUERY - 4),
        f"/v2/a/referrers/{SHA256}?ns=ghcr.io&x=" + "a" * MAX_QUERY,
    ],
)
def test_a_target_that_is_too_long(target: str) -> None:
    assert refused(target) == (414, Code.UNSUPPORTED)


def test_the_longest_query() -> None:
    assert parsed("/v2/a/tags/list?ns=ghcr.io&last=" + "a" * (MAX_QUERY - 5)).query == "last=" + "a" * (MAX_QUERY - 5)


def test_what_is_long_is_not_remembered() -> None:
    for cached, long in ((_parse_cached, CACHED_TARGET), (_types_cached, CACHED_ACCEPT)):
        cached.cache_clear()
        for size in (long, long + 1):
            parse_target("/v2/a/manifests/1?ns=ghcr.io&x=".ljust(size, "a"))
            accepted_types(("a/b".ljust(size, "b"),))
        assert cached.cache_info().currsize == 1
