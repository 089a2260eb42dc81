"""The rules of `allow` and `deny`: which pattern covers what, which one decides, and which can never match."""

import time
from fnmatch import fnmatchcase

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cacheyd.protocol.reference import NAME, TAG, Kind, Reference
from cacheyd.protocol.targets import parse_target
from cacheyd.settings.ages import Ages, parse_ages
from cacheyd.settings.patterns import parse_pattern
from cacheyd.settings.pins import meant_image, parse_pins
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


# What can never match


@pytest.mark.parametrize(
    "pattern",
    [
        "docker.io/Library/*", "docker.io/library/nginx latest", "ghcr.io/", "ghcr.io//app", "ghcr.io/app/", "ghcr.io/*//x",
        "/app", "ghcr.io/-app", "ghcr.io/app-", "ghcr.io/a..b", "ghcr.io/a___b*", "ghcr.io/*_/x", "ghcr.io/app@" + DIGEST,
        "ghcr.io/app:", "ghcr.io/app:1:2", "ghcr.io/app:-x", "ghcr.io/app:v+1", "ghcr.io/app:" + "a" * 129, "ghcr.io/[A-Z]*",
        "ghcr.io/[", "ghcr.io/" + "a" * 256, "https://ghcr.io", "https://ghcr.io/app", "ghcr..io", "-ghcr.io", "*.Corp.test",
        "*.corp.test:443", "ghcr.io:99999", "ghcr io", "*.corp/App", "ghcr.io/app:[!0-9a-zA-Z_.-]", "ghcr.io/ä",
        "ghcr.io/*-", "user@ghcr.io", "*@ghcr.io", "docker.io/Nginx", "docker.io/library/nginx:lat est",
    ],
)  # fmt: skip
def test_what_can_never_match_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="can never match: ") as caught:
        parse_rules([pattern])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "pattern",
    [
        "*/*:*", "*:5000", "10.*", "*.0.0.1:5000", "a", "localhost", "ghcr.io/*_*", "ghcr.io/a_*_b", "ghcr.io/a.*",
        "ghcr.io/?", "ghcr.io/*?*", "ghcr.io/[a-z]*/[!b]x", "ghcr.io/a[/]b", "*/*:v[0-9]*", "*/*:[A-Z]*", "*/*:*-rc*",
        "bücher.example/app", "[::1]", "ghcr.io/" + "a" * 255 + "*", "*/*:" + "a" * 128 + "*", "ghcr.io/[]a]x", "*/*:_",
    ],
)  # fmt: skip
def test_what_can_match_is_taken(pattern: str) -> None:
    assert parse_rules([pattern]) == (pattern,)


WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=12)
# What `NAME` describes, made piece by piece: st.from_regex takes twenty times as long for it.
NAMES = st.lists(
    st.builds(
        lambda first, more: first + "".join(map("".join, more)),
        WORDS,
        st.lists(st.tuples(st.sampled_from([".", "_", "__", "-", "--", "---"]), WORDS), max_size=3),
    ),
    min_size=1,
    max_size=4,
).map("/".join)


@given(
    name=NAMES,
    tag=st.from_regex(TAG, fullmatch=True),
    cuts=st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 8), st.sampled_from(["*", "?", "[a-z]", "[!a]", ""])), max_size=4
    ),
)
def test_no_pattern_that_matches_is_refused(name: str, tag: str, cuts: list[tuple[int, int, str]]) -> None:
    """Patterns made of a name, by putting wildcards for what is in it."""
    assert NAME.fullmatch(name)
    assume(len(name) <= 255)
    for what, prefix in ((name, "ghcr.io/"), (tag, "ghcr.io/app:")):
        pattern = what
        for start, size, wildcard in cuts:
            pattern = pattern[:start] + wildcard + pattern[start + size :]
        if pattern and fnmatchcase(what, pattern):
            parse_pattern(prefix + pattern)


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


# min_ages


@pytest.mark.parametrize(
    ("name", "age"),
    [
        ("docker.io/library/nginx:latest", 7.0),
        ("docker.io/nginx:latest", 7.0),
        ("docker.io/library/nginx:1.27", 3.0),
        ("docker.io/acme/app:latest", 5.0),
        ("docker.io/acme/app:1", 2.0),
        ("ghcr.io/acme/app:1", 4.0),
        ("quay.io/acme/app:1", 1.0),
        ("quay.io/acme/app:latest", 5.0),
    ],
)
def test_the_most_specific_age_counts(name: str, age: float) -> None:
    ages = Ages(
        (
            ("*", 1.0), ("docker.io", 2.0), ("docker.io/library/*", 3.0), ("ghcr.io", 4.0), ("*/*:latest", 5.0),
            ("docker.io/library/*:latest", 6.0), ("docker.io/nginx:latest", 7.0),
        )
    )  # fmt: skip
    registry, _, rest = name.partition("/")
    repository, _, tag = rest.rpartition(":")
    assert ages.find(Reference(registry, repository, Kind.MANIFEST, tag, None, "")) == age


def test_of_ages_that_are_alike_the_longer_counts() -> None:
    ref = Reference("docker.io", "library/nginx", Kind.MANIFEST, "1", None, "")
    assert Ages((("docker.io/nginx", 1.0), ("docker.io/library/nginx", 2.0))).find(ref) == 2.0
    assert Ages((("ghcr.io", 1.0),)).find(ref) is None
    assert Ages().find(ref) is None


@pytest.mark.parametrize("value", [{"docker.io/Nginx": "1d"}, {"": "1d"}, ["docker.io"], {"docker.io": True}, "docker.io", 5])
def test_ages_that_cannot_be_meant(value: object) -> None:
    with pytest.raises(ValueError, match=r"can never match|a table such as"):
        parse_ages(value)


def test_a_duration_that_is_none_is_shown_with_its_pattern() -> None:
    with pytest.raises(ValueError, match=r"'docker\.io/x' = 'foo' is not a duration such as"):
        parse_ages({"docker.io": "1d", "docker.io/x": "foo"})


# What can hardly be meant


@pytest.mark.parametrize(
    ("pattern", "image"),
    [
        ("nginx", "docker.io/library/nginx"),
        ("nginx:*", "docker.io/library/nginx:*"),
        ("redis:7", "docker.io/library/redis:7"),
        ("acme/app:v*", "docker.io/acme/app:v*"),
        ("library/nginx", "docker.io/library/nginx"),
    ],
)
def test_a_registry_of_one_part_is_an_image(pattern: str, image: str) -> None:
    assert meant_image(pattern, ["ghcr.io", ""]) == image
    assert meant_image(pattern, [pattern.partition("/")[0]]) == ""


@pytest.mark.parametrize(
    "pattern",
    [
        "localhost",
        "ghcr.io",
        "reg:5000",
        "reg:80",
        "reg:5000/app",
        "*",
        "reg*",
        "[::1]",
        "[a-c]x",
        "*/app",
        "localhost:*",
        "mine",
    ],
)
def test_a_registry_that_may_be_meant_is_none(pattern: str) -> None:
    assert meant_image(pattern, ["mine:5000"]) == ""


# Pins


@pytest.mark.parametrize(
    ("pin", "kept"),
    [
        ("docker.io/library/*:*", "docker.io/library/*:*"),
        ("docker.io/nginx:*", "docker.io/library/nginx:*"),
        ("index.docker.io/library/nginx:1", "docker.io/library/nginx:1"),
        ("GHCR.io/acme/app:V1", "ghcr.io/acme/app:V1"),
        ("*", "*"),
        ("*:latest", "*:latest"),
        ("*@sha256:*", "*@sha256:*"),
        (f"ghcr.io/acme/app@{DIGEST}", f"ghcr.io/acme/app@{DIGEST}"),
        ("ghcr.io/acme/*V1", "ghcr.io/acme/*V1"),
        ("docker.io*:[0-9].?", "docker.io*:[0-9].?"),
        ("reg.test:5000/a:1", "reg.test:5000/a:1"),
        ("localhost:*", "localhost:*"),
        ("nginx*:*", "nginx*:*"),
        ("reg:5000/*", "reg:5000/*"),
    ],
)
def test_pins_that_can_match(pin: str, kept: str) -> None:
    assert parse_pins([pin]) == parse_pins(pin) == (kept,)


@pytest.mark.parametrize(
    ("pin", "hint"),
    [
        ("docker.io", '"docker.io/*"'),
        ("alpine", '"docker.io/library/alpine:*"'),
        ("alpine:3.22", '"docker.io/library/alpine:3.22"'),
        ("nginx:*", '"docker.io/library/nginx:*"'),
        ("nginx:1.*", '"docker.io/library/nginx:1.*"'),
        ("nginx:?", '"docker.io/library/nginx:?"'),
        ("ghcr.io/acme/app", '"ghcr.io/acme/app:*"'),
        ("*/app", '"*/app:*"'),
        ("ghcr.io/Acme/app:1", "lower case"),
        ("ghcr.io/acme/[A-Z]*:1", "lower case"),
        ("ghcr.io/acme/app:", "no tag"),
        ("ghcr.io/acme/app:1:2", "no tag"),
        ("ghcr.io/acme/app@1", "no repository"),
        ("https://ghcr.io/acme/app:1", "never match"),
        ("a b/c:1", "no registry"),
    ],
)
def test_pins_that_can_never_match_are_refused_with_what_is_meant(pin: str, hint: str) -> None:
    with pytest.raises(ValueError, match="can never match") as caught:
        parse_pins([pin])
    assert hint in str(caught.value)


@given(st.from_regex(r"[ab]{1,3}/[ab]{1,3}(:[abA][abA.]{0,2}|@sha256:[ab]{64})", fullmatch=True), st.data())
def test_no_pin_that_matches_an_image_is_refused(name: str, data: st.DataObject) -> None:
    pattern = "".join(data.draw(st.sampled_from((char, "?", "*", f"{char}*"))) for char in name)
    assert fnmatchcase(name, pattern)
    assert parse_pins([pattern])
