"""URLs: what is checked is what is sent, byte for byte, and nothing else than a URL is sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheyd.protocol.urls import Url, from_field, is_upgrade, parse_url, resolve

BASE = "https://reg.test/v2/app/blobs/x?y"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://reg.test", Url("https", "reg.test", 443, "/")),
        ("HTTP://REG.test:5000/A?b=C#d", Url("http", "reg.test", 5000, "/A?b=C")),
        ("https://reg.test?x", Url("https", "reg.test", 443, "/?x")),
        ("https://reg.test./x", Url("https", "reg.test", 443, "/x")),
        ("https://[::1]:1/", Url("https", "::1", 1, "/")),
        ("https://[0:0::1]/", Url("https", "::1", 443, "/")),
        ("http://127.1/", Url("http", "127.0.0.1", 80, "/")),
        ("http://0x7f000001/", Url("http", "127.0.0.1", 80, "/")),
        ("http://0177.0.0.1/", Url("http", "127.0.0.1", 80, "/")),
        ("http://2852039166/", Url("http", "169.254.169.254", 80, "/")),
        ("http://\uff11\uff12\uff17.0.0.1/", Url("http", "127.0.0.1", 80, "/")),
        ("http://127\u30020\u30020\u30021/", Url("http", "127.0.0.1", 80, "/")),
        ("https://b\u00fccher.test/\u00fc", Url("https", "xn--bcher-kva.test", 443, "/%C3%BC")),
        ("https://stra\u00dfe.test./", Url("https", "xn--strae-oqa.test", 443, "/")),
        ("https://reg.test/a b", Url("https", "reg.test", 443, "/a%20b")),
        ('https://reg.test/|^"{}<>`\\', Url("https", "reg.test", 443, "/%7C%5E%22%7B%7D%3C%3E%60%5C")),
        ("https://reg.test/%2f%2F%zz%?a=[b]&c=d+e'(f)*~;$,!@:%20", Url(
            "https", "reg.test", 443, "/%2f%2F%zz%?a=[b]&c=d+e'(f)*~;$,!@:%20")),
        ('https://reg.test/?|^"{}<>`\\ \u00fc?', Url("https", "reg.test", 443, '/?|^"{}<>`\\%20%C3%BC?')),
        ("https://reg.test/a//b/../c/./?", Url("https", "reg.test", 443, "/a//b/../c/./?")),
    ],
)  # fmt: skip
def test_what_is_requested(text: str, url: Url) -> None:
    assert parse_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "", "reg.test", "/v2/", "//reg.test/", "ftp://reg.test/", "file:///etc/passwd", "https:/reg.test", "https:reg.test",
        "https://", "https:///x", "https://?x", "https://:443/", "https://a:b@reg.test/", "https://a@reg.test/",
        "https://@reg.test",
        "https://[x", "https://[x]", "https://[1:2:3]", "https://[::::]", "https://[::1]x/", "https://[::1%25lo]/",
        "https://::1/",
        "https://reg.test:0/", "https://reg.test:65536/", "https://reg.test:x/", "https://reg.test:/", "https://reg.test:-1/",
        "https://reg.test:80:80/", "https://reg%2etest/", "https://reg_test\\.evil.test/", "https://reg.test\\@evil.test/",
        "https://reg.test /", " https://reg.test/", "https://reg.test/\r\nX: y", "https://reg.test/\nx",
        "https://reg.test/\tx",
        "https://reg.test/\x00", "https://reg.test/\x7f", "https://re\tg.test/", "h\nttps://reg.test/", "https://reg..test/",
        "https://.reg.test/", "https://reg.test../", "https://-reg.test/", f"https://{'a' * 64}.test/",
        f"https://{'a.' * 127}test/",
        "https://\u2100.test/", "https://\udcff.test/", "https://b\u00fc..test/",
        "https://256.1.1.1/", "https://1.2.3.4.5/", "https://09.1/",
        "https://4294967296/", "https://x.0x/",
    ],
)  # fmt: skip
def test_what_is_no_url(text: str) -> None:
    with pytest.raises(ValueError):
        parse_url(text)


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("https://cdn.test/a/../b?X=%2F", "https://cdn.test/a/../b?X=%2F"),
        ("https://cdn.test/a?", "https://cdn.test/a?"),
        ("//cdn.test/a", "https://cdn.test/a"),
        ("/a?b=c;d", "https://reg.test/a?b=c;d"),
        ("/a/../b", "https://reg.test/b"),
        ("z?b", "https://reg.test/v2/app/blobs/z?b"),
        ("?z", "https://reg.test/v2/app/blobs/x?z"),
        ("", BASE),
        ("ftp://x/", "ftp://x/"),
    ],
)
def test_where_a_location_leads_to(location: str, url: str) -> None:
    assert resolve(BASE, location) == url


@pytest.mark.parametrize("location", ["/a\r\nb", "/a\tb", "\n/a", "//[x", "a\x00", "https://reg.test/\x0b"])
def test_a_location_that_leads_nowhere(location: str) -> None:
    with pytest.raises(ValueError):
        parse_url(resolve(BASE, location))


def test_bytes_of_a_header() -> None:
    assert parse_url(resolve(BASE, from_field("/\xc3\xbc\xff"))).path == "/%C3%BC%FF"


@given(st.text(), st.sampled_from(["", "https://", "https://reg.test/", "http://["]))
def test_any_text_is_refused_or_safe(text: str, start: str) -> None:
    try:
        url = parse_url(resolve(BASE, start + text))
    except ValueError:
        return
    assert url.scheme in ("http", "https")
    assert 0 < url.port < 65536
    assert url.path.startswith("/")
    assert all("!" <= c <= "~" for c in url.path + url.host)
    host = f"[{url.host}]" if ":" in url.host else url.host
    assert parse_url(f"{url.scheme}://{host}:{url.port}{url.path}") == url


@pytest.mark.parametrize(
    ("known", "url", "same"),
    [
        ("http://reg.test", "https://reg.test", True), ("http://reg.test:80/v2/", "https://REG.test.:443/x", True),
        ("http://reg.test:5000", "https://reg.test:5000", True), ("http://[::1]:5000", "https://[0::1]:5000", True),
        ("http://reg.test", "https://reg.test:5000", False), ("http://reg.test:5000", "https://reg.test", False),
        ("http://reg.test:443", "https://reg.test:80", False), ("http://reg.test", "https://reg.test:80", True),
        ("http://reg.test", "https://www.reg.test", False), ("http://reg.test", "https://reg.test.evil.test", False),
        ("https://reg.test", "http://reg.test", False), ("https://reg.test", "https://reg.test", False),
        ("http://reg.test", "http://reg.test", False), ("https://reg.test:5000", "http://reg.test:5000", False),
    ],
)  # fmt: skip
def test_the_same_host_by_tls(known: str, url: str, same: bool) -> None:
    assert is_upgrade(parse_url(known), parse_url(url)) is same
