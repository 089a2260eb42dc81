"""The most specific of the ages counts."""

import pytest

from cacheyd.protocol.reference import Kind, Reference
from cacheyd.settings.ages import Ages, parse_ages


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
