"""Whatever a page shows to be typed, or to be put into a file, can be.

Shell: each `cacheyd` command is parsed by its own parser, `make` targets and the files of the repository exist, scripts
have the syntax of a shell, `curl` asks for pages that there are. TOML and YAML parse, and what is cacheyd's own loads as
settings. Not covered: what the commands of others (kubectl, helm, ctr, skopeo, docker) make of their arguments, output in
`console` blocks, and what commands do.
"""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from cacheyd import cli
from cacheyd.protocol.errors import RequestError
from cacheyd.protocol.targets import Page, parse_target
from cacheyd.settings.load import load
from cacheyd.settings.settings import SETTINGS
from tests.unit.test_docs import CODE, ROOT, prose
from tests.unit.test_docs_links import EVERY

BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {"sh", "console", "toml", "yaml", "json", "python", "text", ""}
BLOCKS = [
    pytest.param(language, text, id=f"{page.name}-{number}")
    for page in EVERY
    for number, (_, language, text) in enumerate(BLOCK.findall(page.read_text("utf-8")))
]
# In the text of a page: a command with its arguments.
INLINE = [
    pytest.param(code, id=f"{page.name}: {code}")
    for page in EVERY
    for code in dict.fromkeys(CODE.findall(prose(page)))
    if re.match(r"(?:cacheyd [a-z]|make [a-z]|\.venv/bin/|(?:mitmdump|mitmweb) -s |kubectl exec .* -- cacheyd)", code)
]


def commands(script: str) -> Iterator[list[str]]:
    """Each simple command of a shell script, as words; here-documents and comments are left out."""
    script = re.sub(r"<<'EOF'\n.*?^EOF$", "", script, flags=re.DOTALL | re.MULTILINE)
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if set(word) <= set("|&;"):
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


def without_redirections(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in ("<", ">", ">>"):
            skip = True
        else:
            kept.append(word)
    return kept


def check(words: list[str]) -> None:
    """One command."""
    words = without_redirections(words)
    if "--" in words and "cacheyd" in words[words.index("--") :]:
        words = words[words.index("--") + 1 :]
    if not words:
        return
    match words[0].rpartition("/")[2]:
        case "cacheyd":
            check_cacheyd(words[1:])
        case "make":
            check_make(words[1:])
        case "curl":
            check_curl(words[1:])
        case "kubectl" | "mitmweb" | "mitmdump" | "pytest":
            check_files(words[1:])
        case "python":
            assert words[1] == "-m"
            name = words[2].replace(".", "/")
            assert (ROOT / f"{name}.py").exists() or (ROOT / name / "__main__.py").exists(), words


def check_cacheyd(arguments: list[str]) -> None:
    """The command line takes these arguments, as they are."""
    try:
        args = cli._parsed(arguments)
    except SystemExit:
        pytest.fail(f"cacheyd {' '.join(arguments)}")
    assert args.command == arguments[0]


def check_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """There is such a command, and it has these options: a text may leave out their values, and put them in [ ]."""
    words = [word.strip("[]…") for word in arguments]
    command = words[:2] if words[0] == "config" else words[:1]
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    assert end.value.code == 0, command
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out))
    assert {word for word in words if word.startswith("-") and word != "-"} <= known, words


def check_make(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for word in arguments:
        assert "=" in word or word in targets, word


def check_curl(arguments: list[str]) -> None:
    (url,) = (word for word in arguments if word.startswith("http"))
    parts = urlsplit(url)
    found = parse_target(parts.path + (f"?{parts.query}" if parts.query else ""))
    assert not isinstance(found, Page) or found.path in ("/v2/", "/metrics", "/healthz", "/readyz", "/"), url


def check_files(arguments: list[str]) -> None:
    """A path with a folder, but no absolute one, is in the repository."""
    for word in arguments:
        if re.fullmatch(r"[\w.-]+(?:/[\w.-]+)+", word) and not word.startswith("deploy/"):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize(("language", "text"), BLOCKS)
def test_a_block_is_what_it_says(language: str, text: str, tmp_path: Path) -> None:
    assert language in LANGUAGES
    match language:
        case "sh":
            done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True, timeout=10, check=False)
            assert done.returncode == 0, done.stderr
            for words in commands(text):
                check(words)
        case "console":
            for line in re.findall(r"^\$ (.+)$", text, re.MULTILINE):
                check(shlex.split(line))
        case "toml":
            check_toml(text, tmp_path)
        case "yaml":
            assert list(yaml.safe_load_all(text))
        case "python":
            compile(text, "block", "exec")
        case _:
            pass


def check_toml(text: str, folder: Path) -> None:
    """It parses; what is not another program's file loads as settings, and its commented lines do, too."""
    assert tomllib.loads(text)
    if re.search(r"^# /etc/containerd/", text):
        return
    for name in set(re.findall(r'"(/(?:etc|run)/[^"]+)"', text)):
        (folder / Path(name).name).touch()
        text = text.replace(name, str(folder / Path(name).name))
    # A line that is commented out stands for the same as the helper above it, and is tried in its place.
    base = re.sub(r"^# (?=\w+ = ).*\n", "", text, flags=re.MULTILINE)
    others = re.findall(r"^# (\w+ = .*)\n", text, re.MULTILINE)
    texts = [
        base,
        *(re.sub(r"^credential_helper = .*$", other.replace("\\", r"\\"), base, flags=re.MULTILINE) for other in others),
    ]
    for number, one in enumerate(texts):
        path = folder / f"{number}.toml"
        path.write_text(one, "utf-8")
        loaded = load(file=str(path), environ={})
        assert loaded.warnings == ()


@pytest.mark.parametrize("code", INLINE)
def test_a_command_in_the_text_can_be_typed(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(code.replace("…", "")):
        inner = words[words.index("--") + 1 :] if "--" in words else words
        if inner[0].rpartition("/")[2] == "cacheyd":
            if inner[1:]:
                check_usage(inner[1:], capsys)
        else:
            check(words)


def test_an_assignment_in_the_text_is_a_setting_that_loads(tmp_path: Path) -> None:
    """`name = value`, as cacheyd's file has it."""
    names = {setting.name: setting for setting in SETTINGS}
    seen = 0
    # The list of changes also has what is refused.
    for page in (page for page in EVERY if page.name != "CHANGELOG.md"):
        for code in CODE.findall(prose(page)):
            if (found := re.fullmatch(r"(\w+) = (.+)", code)) and found[1] in names and found[1] != "auth":
                table = {"registry": '[registries."a.test"]', "defaults": "[defaults]", "global": ""}[names[found[1]].scope]
                (tmp_path / "one.toml").write_text(f"{table}\n{code}\n", "utf-8")
                load(file=str(tmp_path / "one.toml"), environ={})
                seen += 1
    assert seen > 5


def test_there_are_blocks_of_each_kind() -> None:
    languages = [block.values[0] for block in BLOCKS]
    assert {"sh", "console", "toml", "python", "text"} <= set(languages)
    assert len(INLINE) > 10


@pytest.mark.parametrize(
    "words",
    [
        ["cacheyd", "lst"],
        ["cacheyd", "ls", "--blob-list"],
        ["make", "tests"],
        ["curl", "http://a/metric"],
        ["kubectl", "-f", "configs/none.yaml"],
        ["cacheyd", "serve", "--no-such-setting", "1"],
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_found(words: list[str]) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, RequestError)):
        check(words)
