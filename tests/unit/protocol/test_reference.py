"""Request targets: what each client asks for, and what is refused at the edge."""

from collections.abc import Callable
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cacheyd.protocol.accept import (
    CACHED_ACCEPT,
    MAX_ACCEPT,
    MAX_TYPE,
    MAX_TYPES,
    _types_cached,
    accepted_types,
    accepts,
    are_all,
)
from cacheyd.protocol.errors import Code, RequestError
from cacheyd.protocol.images import parse_image
from cacheyd.protocol.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from cacheyd.protocol.reference import MAX_NAME, Kind, Reference
from cacheyd.protocol.registries import canonical_registry, names_of
from cacheyd.protocol.targets import CACHED_TARGET, MAX_QUERY, MAX_TARGET, Page, _parse_cached, name_to_ask, parse_target

SHA256 = "sha256:" + "a1" * 32
SHA512 = "sha512:" + "b2" * 64


def parsed(target: str, default_registry: str = "") -> Reference:
    reference = parse_target(target, default_registry)
    assert isinstance(reference, Reference)
    return reference


def refused(target: str, default_registry: str = "") -> tuple[int, Code]:
    with pytest.raises(RequestError) as caught:
        parse_target(target, default_registry)
    return caught.value.failure.status, caught.value.failure.code


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


@pytest.mark.parametrize("alias", ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.docker.io", "Docker.IO"])
def test_docker_hub_has_one_canonical_name(alias: str) -> None:
    ref = parsed(f"/v2/library/nginx/manifests/1?ns={alias}")

    assert ref.registry == "docker.io"
    assert ref.ns == alias, "OCI-Namespace echoes what the client said"


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


@pytest.mark.parametrize(
    ("ns", "registry"),
    [
        ("GHCR.io", "ghcr.io"),
        ("reg.example:5000", "reg.example:5000"),
        ("[fd00::1]:5000", "[fd00::1]:5000"),
        ("[::1]", "[::1]"),
        ("10.0.0.1", "10.0.0.1"),
        ("my_registry", "my_registry"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("σίσυφος.example", "xn--kxa6ajbbmh.example"),
        ("BÜCHER.example:5000", "xn--bcher-kva.example:5000"),
        ("host:65535", "host:65535"),
        ("host:1", "host:1"),
        ("127.1:5000", "127.0.0.1:5000"),
        ("0x0a000001", "10.0.0.1"),
        ("167772161", "10.0.0.1"),
        ("012.0.0.1", "10.0.0.1"),
        ("\uff11\uff10.1", "10.0.0.1"),
        ("[0:0:0:0:0:0:0:1]", "[::1]"),
        ("[FD00::A]:443", "[fd00::a]"),
        ("[::ffff:10.1.2.3]:5000", "10.1.2.3:5000"),
        ("[::FFFF:a01:203]", "10.1.2.3"),
        ("[0:0:0:0:0:ffff:10.1.2.3]:443", "10.1.2.3"),
        ("[64:ff9b::10.1.2.3]:5000", "[64:ff9b::a01:203]:5000"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
    ],
)
def test_registries(ns: str, registry: str) -> None:
    assert canonical_registry(ns) == registry


@pytest.mark.parametrize(
    ("registry", "others"),
    [
        ("docker.io", ()), ("10.1.2.3:5000", ()), ("[fd00::a01:203]:5000", ()), ("[::1]:5000", ()),
        ("[64:ff9b::a01:203]:5000", ("10.1.2.3:5000",)), ("[64:ff9b::a01:203]", ("10.1.2.3",)),
        ("[64:ff9b:1::a01:203]:80", ("10.1.2.3:80",)), ("[2002:a01:203::1]:5000", ("10.1.2.3:5000",)),
        ("[::a01:203]:5000", ("10.1.2.3:5000",)), ("[::ffff:0:a01:203]:5000", ("10.1.2.3:5000",)),
        ("[2001:db8::5efe:a01:203]:5000", ("10.1.2.3:5000",)),
    ],
)  # fmt: skip
def test_an_address_in_an_address_is_another_name(registry: str, others: tuple[str, ...]) -> None:
    assert names_of(registry) == (registry, *others)


@pytest.mark.parametrize(
    "ns",
    [
        "user@ghcr.io",
        "user:secret@ghcr.io",
        "https://ghcr.io",
        "ghcr.io/path",
        "ghcr.io/",
        "../ghcr.io",
        "ghcr.io.",
        "bücher.example.",
        "a_ü.example",
        "\u200d.example",
        "ghcr.io?x=1",
        "ghcr.io#x",
        "ghcr.io\\x",
        "ghcr.io ",
        " ghcr.io",
        "ghcr.io\x00",
        "ghcr.io\r\nX-Evil: 1",
        "ghcr.io\n",
        "ghcr.io\t",
        "ghcr.io\x7f",
        "host:0",
        "host:65536",
        "host:99999",
        "host:123456",
        "host:",
        "host:-1",
        "host:+80",
        "host:80:80",
        "host:\uff18\uff10",
        ":5000",
        "-host",
        "host-",
        ".host",
        "host..example",
        "..",
        ".",
        "[::1",
        "::1",
        "[::1]x",
        "[ghcr.io]",
        "%",
        "ü" * 64 + ".example",
        "bücher..example",
        "ghcr\u2100.io",
        "a" * 256,
        "a" * 64 + ".example",
        "a." * 126 + "example",
        "[1:2:3]",
        "[::::]",
        "[::1.2.3]",
        "256.0.0.1",
        "1.2.3.4.5",
        "09.0.0.1",
        "example.0x1g.1",
    ],
)
def test_ns_that_is_no_registry(ns: str) -> None:
    assert refused(f"/v2/a/manifests/1?ns={quote(ns, safe='')}") == (400, Code.NAME_INVALID)


def test_an_empty_ns_is_none() -> None:
    assert parsed("/v2/ghcr.io/app/manifests/1?ns=").registry == "ghcr.io"
    assert refused("/v2/app/manifests/1?ns=") == (400, Code.NAME_INVALID)


def test_an_error_does_not_repeat_a_long_ns() -> None:
    with pytest.raises(RequestError) as caught:
        canonical_registry("a" * 10_000)

    assert len(caught.value.failure.body()) < 1000


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


def outcome[**P, T](function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | RequestError:
    try:
        return function(*args, **kwargs)
    except RequestError as error:
        return error


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


@given(st.text())
def test_any_registry_name_is_refused_or_has_one_safe_form(ns: str) -> None:
    registry = outcome(canonical_registry, ns)
    if isinstance(registry, RequestError):
        assert registry.failure.status == 400
    else:
        assert canonical_registry(registry) == registry
        assert registry.isascii()
        assert not set(registry) & set("/\\@?#% \r\n\t\x00")


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


# Accept


@pytest.mark.parametrize(
    ("accept", "whole"),
    [
        (("a/b",) * 100, True),
        (tuple(f"a/{number}" for number in range(MAX_TYPES)), True),
        (tuple(f"a/{number}" for number in range(MAX_TYPES + 1)), False),
        (("a/b" + " " * (MAX_ACCEPT - 3),), True),
        (("a/b", " " * MAX_ACCEPT), False),
        (("a/b, " + "c" * MAX_ACCEPT,), False),
    ],
)
def test_absurd_accepts_are_told_from_others(accept: tuple[str, ...], whole: bool) -> None:
    """What was not looked at is not taken for what was: the first type is known in any case."""
    types = accepted_types(accept)
    assert are_all(types) == whole
    assert accepts(types, accept[0].partition(",")[0].strip())
    assert len(types) <= MAX_TYPES + 2
    assert accepted_types((*accept, "x/y")) != types


def test_a_type_that_is_too_long_is_none() -> None:
    assert accepted_types(("a/" + "b" * MAX_TYPE, "c/d")) == {"c/d"}


CONTAINERD = (f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*",)
SKOPEO = (DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, "application/vnd.docker.distribution.manifest.v1+json")


@pytest.mark.parametrize(
    ("accept", "types"),
    [
        ((), set()),
        (("",), set()),
        ((",, ,",), set()),
        (CONTAINERD, {DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, "*/*"}),
        (SKOPEO, set(SKOPEO)),
        ((f"{OCI_INDEX};q=0.5, {OCI_MANIFEST} ; q=1.0",), {OCI_INDEX, OCI_MANIFEST}),
        ((OCI_INDEX.upper(),), {OCI_INDEX}),
        ((f"{OCI_INDEX};q=0, {OCI_MANIFEST};q=0.000",), set()),
        ((f"{OCI_INDEX};q=0.001",), {OCI_INDEX}),
    ],
)
def test_accept_lines_name_types(accept: tuple[str, ...], types: set[str]) -> None:
    assert accepted_types(accept) == types


@pytest.mark.parametrize(
    ("types", "media_type", "taken"),
    [
        (set(), OCI_INDEX, True),
        ({"*/*"}, OCI_INDEX, True),
        ({"application/*"}, OCI_INDEX, True),
        ({"text/*"}, OCI_INDEX, False),
        ({OCI_INDEX}, OCI_INDEX, True),
        ({OCI_INDEX}, OCI_INDEX.upper(), True),
        ({OCI_MANIFEST}, OCI_INDEX, False),
    ],
)
def test_a_type_is_taken_if_it_or_its_wildcard_is_named(types: set[str], media_type: str, taken: bool) -> None:
    assert accepts(frozenset(types), media_type) is taken


# Names of images


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.22", "docker.io/library/alpine:3.22"),
        ("acme/app", "docker.io/acme/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ("ghcr.io/acme/app:1.0", "ghcr.io/acme/app:1.0"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("localhost:5000/x:1", "localhost:5000/x:1"),
        ("GHCR.io:443/acme/app", "ghcr.io/acme/app:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        (f"ghcr.io/acme/app@{SHA256}", f"ghcr.io/acme/app@{SHA256}"),
        (f"alpine:3.22@{SHA256}", f"docker.io/library/alpine:3.22@{SHA256}"),
        (f"localhost:5000/x:1@{SHA512}", f"localhost:5000/x:1@{SHA512}"),
    ],
)
def test_an_image_is_named_as_for_docker(name: str, full: str) -> None:
    image = parse_image(name)

    assert str(image) == full
    assert parse_image(full) == image
    assert image.reference == (image.digest or image.tag)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":1.0",
        "Alpine",
        "acme/App",
        "acme//app",
        "/app",
        "acme/",
        "alpine:",
        "alpine:-x",
        "alpine:1:2",
        "alpine@",
        "alpine@sha256:12",
        "alpine@latest",
        "ghcr.io:99999/app",
        "user@ghcr.io/app",
        "https://ghcr.io/acme/app",
        "ghcr.io/" + "a" * 256,
        "alp ine",
        "alpine\n",
        SHA256,
        SHA512,
        SHA256[:19],
    ],
)
def test_what_names_no_image_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_image(name)


def test_parts_of_an_image_are_references() -> None:
    image = parse_image("ghcr.io/acme/app:1.0")

    assert image.part(Kind.MANIFEST, image.reference).path == "/v2/acme/app/manifests/1.0"
    assert image.part(Kind.BLOB, SHA256, "ghcr.io") == Reference("ghcr.io", "acme/app", Kind.BLOB, SHA256, SHA256, "ghcr.io")
