"""Token services that may see a login, and others."""

import pytest

from cacheyd.upstream.realms import realm_belongs


@pytest.mark.parametrize(
    "realm",
    ["https://[x", "https://evil.test\\@reg.test/", "https://reg.test@evil.test/", "https://evil.test/\thttps://reg.test/",
     "http://reg.test/token", "https://reg.test:444/", "https://auth.test.evil.test/", "https://auth.test:8443/", "x", ""],
)  # fmt: skip
def test_realms_that_do_not_belong(realm: str) -> None:
    assert not realm_belongs(realm, "https://reg.test", ("https://auth.test",))


@pytest.mark.parametrize(
    "realm", ["https://reg.test/token", "https://REG.test:443/x", "https://auth.test/token?x", "https://auth.test"]
)
def test_realms_that_belong(realm: str) -> None:
    assert realm_belongs(realm, "https://reg.test", ("https://auth.test",))


@pytest.mark.parametrize(
    "path",
    ["token/../other/app", "token/..", "token/./../x", "token/%2e%2e/other", "token/%2E%2e/other", "token/.%2e/other",
     "token/%252e%252e/other", "token/%25252e./other", "token/..%2fother", "token/x%2f..%2f..%2fother", "token/..%5cother",
     "token/..\\other", "token/..;x=y/other", "token/%2e%2e%3bx/other", "token//other", "token/x//../y", "token/%2f/other",
     "token/.", "token/a/..?x=y", "tokens", "other", "../token/../other"],
)  # fmt: skip
def test_no_realm_leaves_what_is_allowed(path: str) -> None:
    assert not realm_belongs(f"https://login.test/{path}", "https://reg.test", ("https://login.test/token",))
    assert not realm_belongs(f"https://login.test/{path}", "https://reg.test", ("https://login.test/token/",))


@pytest.mark.parametrize(
    "path",
    ["token", "token/", "token?a=/../b", "token/x", "token/x/", "token/a.b", "token/..a/...", "token/a%20b", "token/x?y//z"],
)
def test_realms_below_what_is_allowed(path: str) -> None:
    assert realm_belongs(f"https://login.test/{path}", "https://reg.test", ("https://login.test/token",))


def test_a_token_service_at_the_port_of_https_may_be_of_a_registry_at_another_one() -> None:
    assert realm_belongs("https://reg.test/token", "https://reg.test:5000", ())
    assert not realm_belongs("https://reg.test:5000/token", "https://reg.test", ())
    assert not realm_belongs("http://reg.test/token", "https://reg.test:5000", ())
