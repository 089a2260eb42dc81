"""Every relative link of every page leads to a file that is there, and to a heading that is in it."""

import re
from pathlib import Path

import pytest

from tests.unit.test_docs import CODE, PAGES, ROOT, prose

CONFIG_PAGES = sorted((ROOT / "configs").rglob("*.md"))
EVERY = [*PAGES, *CONFIG_PAGES]
LINK = re.compile(r"\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)")
# Paths in inline code: of this repository, and not of a node's or the cache's own folders.
PATH = re.compile(r"(?:cacheyd|configs|docs|tests|tools|addons)/[\w./*-]*")
# The top of the repository: files that a page may name by themselves.
NAMED = re.compile(r"(?:README|CONTRIBUTING|CHANGELOG)\.md|Makefile|Dockerfile|pyproject\.toml|requirements[\w-]*\.lock")


def anchors(page: Path) -> set[str]:
    """The anchor of each heading, as GitHub makes it."""
    found: set[str] = set()
    for title in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = 0
        while (anchor := f"{name}-{count}" if count else name) in found:
            count += 1
        found.add(anchor)
    return found


@pytest.mark.parametrize("page", EVERY, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), (link, anchors(target))


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        links = [link.partition("#")[0] for link in LINK.findall(prose(page)) if not re.match(r"[a-z]+:|#", link)]
        targets = {(page.parent / link).resolve() for link in links}
        ahead += [target for target in targets - reached if target.suffix == ".md"]
    assert set(PAGES) <= reached


@pytest.mark.parametrize("page", [page for page in EVERY if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_each_path_in_inline_code_exists(page: Path) -> None:
    for code in CODE.findall(prose(page)):
        for path in PATH.findall(code) if PATH.fullmatch(code) else NAMED.findall(code) if NAMED.fullmatch(code) else []:
            found = (ROOT / path).exists() or (ROOT / f"{path}.py").exists() or list(ROOT.glob(path))
            assert found, path


@pytest.mark.parametrize("page", EVERY, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_paragraph_is_said_twice(page: Path) -> None:
    """Across the pages, too: where two need it, one has a link."""
    others = [other for other in EVERY if other != page and other.name != "CHANGELOG.md"]
    texts = {other: _paragraphs(other) for other in others}
    for paragraph in _paragraphs(page):
        assert not [other.name for other in others if paragraph in texts[other]], paragraph


def _paragraphs(page: Path) -> set[str]:
    blocks = re.split(r"\n\s*\n|\n(?=[-|] ?)", prose(page))
    return {text for block in blocks if len(text := " ".join(block.split())) > 60}
