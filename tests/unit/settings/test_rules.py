"""The rules of `allow` and `deny`: which pattern covers what, which one decides, and which can never match."""

import time

import pytest

from cacheyd.protocol.reference import Reference
from cacheyd.protocol.targets import parse_target
from cacheyd.settings.ages import Ages, parse_ages
from cacheyd.settings.rules import Rules, parse_rules

DIGEST = "sha256:" + "a1" * 32
UNTAGGED = (f"manifests/{DIGEST}", f"blobs/{DIGEST}", "tags/list", f"referrers/{DIGEST}")


def asked(name: str, rest: str = "manifests/1.0") -> Reference:
    ref = parse_target(f"/v2/{name}/{rest}")
    assert isinstance(ref, Reference)
    return ref


def denier(ref: Reference, *, allow: str = "", deny: str = "") -> str:
    """The rule that refuses."""
    return Rules(parse_rules(allow), parse_rules(deny)).refusal(ref)[1]


# One pattern


@pytest.mark.parametrize(
    ("pattern", "name", "covered"),
    [
        ("docker.io", "docker.io/library/nginx", True),
        ("index.docker.io", "docker.io/library/nginx", True),
        ("GHCR.io", "ghcr.io/acme/app", True),
        ("reg.test:443", "reg.test/app", True),
        ("reg.test:5000", "reg.test:5000/app", True),
        ("reg.test", "reg.test:5000/app", False),
        ("reg.test*", "reg.test:5000/app", True),
        ("[::1]:5000", "[::1]:5000/app", True),
        ("[a-c].test", "b.test/app", True),
        ("*.io", "ghcr.io/acme/app", True),
        ("*", "ghcr.io/acme/app", True),
        ("docker.io/library/*", "docker.io/library/nginx", True),
        ("docker.io/library/*", "docker.io/libraryx/nginx", False),
        ("docker.io/library/*", "ghcr.io/library/nginx", False),
        ("docker.io/nginx", "docker.io/library/nginx", True),
        ("registry-1.docker.io/nginx", "docker.io/library/nginx", True),
        ("docker.io/nginx", "docker.io/acme/nginx", False),
        ("ghcr.io/app", "ghcr.io/app", True),
        ("ghcr.io/acme/*", "ghcr.io/acme/team/app", True),
        ("ghcr.io/acme", "ghcr.io/acme/app", False),
        ("*/acme/app", "ghcr.io/acme/app", True),
        ("*/acme/app", "ghcr.io/x/acme/app", False),
        ("*/*", "ghcr.io/acme/app", True),
        ("gh*/ap[p-q]", "ghcr.io/app", True),
        ("ghcr.io/ap?", "ghcr.io/app", True),
        ("ghcr.io/app:1.0", "ghcr.io/app", True),
        ("ghcr.io/app:1.1", "ghcr.io/app", False),
        ("ghcr.io/app:1.*", "ghcr.io/app", True),
        ("ghcr.io/app:*", "ghcr.io/app", True),
        ("*/*:1.?", "ghcr.io/app", True),
        ("[::1]:5000/*:1.0", "[::1]:5000/app", True),
        ("reg.test:5000/app:1.0", "reg.test:5000/app", True),
    ],
)
def test_what_a_pattern_covers(pattern: str, name: str, covered: bool) -> None:
    """Of tag 1.0."""
    assert denier(asked(name), deny=pattern) == (f'deny = "{pattern}"' if covered else "")
    assert denier(asked(name), allow=pattern) == ("" if covered else "allow")


@pytest.mark.parametrize("rest", UNTAGGED)
def test_what_has_no_tag_is_allowed_by_one_and_not_denied(rest: str) -> None:
    """An image that is allowed by its tag is made of it."""
    ref = asked("ghcr.io/app", rest)
    assert denier(ref, allow="ghcr.io/app:1.*") == ""
    assert denier(ref, allow="ghcr.io/other:1.*") == "allow"
    assert denier(ref, deny="ghcr.io/app:1.*") == ""
    assert denier(ref, deny="*/*:latest") == ""
    # Any tag at all is no tag.
    for pattern in ("ghcr.io/app", "ghcr.io/app:*", "ghcr.io/*:**", "ghcr.io"):
        assert denier(ref, deny=pattern) == f'deny = "{pattern}"'


def test_one_part_by_ns_alone_is_the_same_at_docker_hub() -> None:
    ref = parse_target("/v2/nginx/manifests/1.0?ns=docker.io")
    assert isinstance(ref, Reference)
    for pattern in ("docker.io/library/*", "docker.io/nginx", "docker.io/library/nginx:1.0"):
        assert denier(ref, deny=pattern) == f'deny = "{pattern}"'


@pytest.mark.parametrize("deny", ["10.1.2.3:5000", "10.*", "[[]::ffff:10.1.2.3]:5000,10.1.2.3:5000/acme/*", "*/*:1.0"])
@pytest.mark.parametrize(
    "ns",
    ["10.1.2.3:5000", "[::ffff:10.1.2.3]:5000", "[::ffff:a01:203]:5000", "[64:ff9b::10.1.2.3]:5000", "[2002:a01:203::1]:5000",
     "[::10.1.2.3]:5000", "0xa010203:5000"],
)  # fmt: skip
def test_no_notation_of_an_address_goes_round_a_rule(ns: str, deny: str) -> None:
    ref = parse_target(f"/v2/acme/app/manifests/1.0?ns={ns}")
    assert isinstance(ref, Reference)
    assert denier(ref, deny=deny).startswith("deny = ")
    assert Ages(parse_ages({"10.1.2.3:5000/acme/*": "7d"})).find(ref) == 7 * 86400
    other = parse_target(f"/v2/acme/app/manifests/1.0?ns={ns.replace(':5000', ':5001')}")
    assert isinstance(other, Reference)
    assert denier(other, deny="10.1.2.3:5000") == ""
    # And by allow, only what goes by that name.
    assert denier(ref, allow="10.1.2.3:5000") == ("" if ref.registry == "10.1.2.3:5000" else "allow")


# Both lists


@pytest.mark.parametrize(
    ("allow", "deny", "refused"),
    [
        # Registries alone: deny wins, however they are written.
        ("", "", ""),
        ("docker.io", "", ""),
        ("ghcr.io", "", "allow"),
        ("docker.io", "*.io", 'deny = "*.io"'),
        ("docker.io", "docker.io", 'deny = "docker.io"'),
        ("*", "docker.io", 'deny = "docker.io"'),
        # A repository says more than any registry.
        ("docker.io/library/*", "docker.io", ""),
        ("*/*", "docker.io", ""),
        ("docker.io/acme/*", "docker.io", 'deny = "docker.io"'),
        ("docker.io", "docker.io/library/*", 'deny = "docker.io/library/*"'),
        ("docker.io", "*/*:1.0", 'deny = "*/*:1.0"'),
        # Among those, who has more characters of its own.
        ("docker.io/library/nginx", "docker.io/library/*", ""),
        ("docker.io/library/*", "docker.io/library/nginx", 'deny = "docker.io/library/nginx"'),
        ("docker.io/library/nginx:1.0", "docker.io/library/nginx", ""),
        ("docker.io/library/*", "*/*:1.0", ""),
        ("docker.io/*", "docker.io/library/*:1.0,*/*", 'deny = "docker.io/library/*:1.0"'),
        # A tie is deny's; two ways of writing the same are one.
        ("docker.io/library/nginx", "docker.io/library/nginx", 'deny = "docker.io/library/nginx"'),
        ("index.docker.io/nginx", "docker.io/library/nginx", 'deny = "docker.io/library/nginx"'),
        ("docker.io/library/ngin?", "docker.io/library/?ginx", 'deny = "docker.io/library/?ginx"'),
        ("docker.io/library/nginx:*", "docker.io/library/nginx", 'deny = "docker.io/library/nginx"'),
        # The most specific of each list counts, wherever it stands.
        ("docker.io/*,docker.io/library/nginx:1.0", "docker.io/library/*", ""),
        ("docker.io/library/nginx:1.0,docker.io/*", "docker.io/library/*", ""),
    ],
)
def test_which_rule_decides(allow: str, deny: str, refused: str) -> None:
    """About docker.io/library/nginx:1.0."""
    assert denier(asked("docker.io/library/nginx"), allow=allow, deny=deny) == refused


@pytest.mark.parametrize(
    ("allow", "deny", "words"),
    [
        ("", "docker.io", 'this registry is denied here, by deny = "docker.io"'),
        ("", "docker.io/library/*", 'this image is denied here, by deny = "docker.io/library/*"'),
        ("", "*/*:1.0", 'this tag is denied here, by deny = "*/*:1.0"'),
        ("ghcr.io", "", "this registry is not among those allowed here, by any rule of allow"),
        ("docker.io/acme/*", "", "this image is not among those allowed here, by any rule of allow"),
    ],
)
def test_the_reason_names_the_rule(allow: str, deny: str, words: str) -> None:
    assert Rules(parse_rules(allow), parse_rules(deny)).refusal(asked("docker.io/library/nginx"))[0] == words


def test_the_list_is_as_all_lists_of_patterns() -> None:
    assert parse_rules("docker.io, */*:latest,") == ("docker.io", "*/*:latest")
    for wrong in (7, [""], [1], ["a\nb"]):
        with pytest.raises(ValueError, match="list of patterns"):
            parse_rules(wrong)


def test_a_request_costs_little_whatever_the_rules() -> None:
    """Names are a stranger's; the patterns are not."""
    deny = tuple(f"*/{'*a' * 40}b{number}:{'*a' * 40}b" for number in range(100))
    rules, best = Rules((), deny), 1.0
    for length in range(123, 128):
        ref = asked("ghcr.io/" + "a" * 255, "manifests/" + "a" * length)
        started = time.thread_time()
        assert rules.refusal(ref) == ("", "")
        best = min(best, time.thread_time() - started)
    assert best < 0.02
