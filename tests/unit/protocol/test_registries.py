"""Names of registries, and what is none."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.protocol.errors import Code, RequestError
from cacheyd.protocol.registries import canonical_registry, names_of
from tests.support.targets import outcome, parsed, refused


@pytest.mark.parametrize("alias", ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.docker.io", "Docker.IO"])
def test_docker_hub_has_one_canonical_name(alias: str) -> None:
    ref = parsed(f"/v2/library/nginx/manifests/1?ns={alias}")

    assert ref.registry == "docker.io"
    assert ref.ns == alias, "OCI-Namespace echoes what the client said"


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


def test_an_error_does_not_repeat_a_long_ns() -> None:
    with pytest.raises(RequestError) as caught:
        canonical_registry("a" * 10_000)

    assert len(caught.value.failure.body()) < 1000


@given(st.text())
def test_any_registry_name_is_refused_or_has_one_safe_form(ns: str) -> None:
    registry = outcome(canonical_registry, ns)
    if isinstance(registry, RequestError):
        assert registry.failure.status == 400
    else:
        assert canonical_registry(registry) == registry
        assert registry.isascii()
        assert not set(registry) & set("/\\@?#% \r\n\t\x00")
