"""Reads the images in a user's file: a list, or Kubernetes objects as JSON or YAML (kubectl, helm template)."""

import codecs
import re
from collections.abc import Iterator

from cacheyd.observe.wording import counted
from cacheyd.protocol.images import parse_image
from cacheyd.terminal.documents import Unreadable, json_documents, yaml_documents
from cacheyd.terminal.findings import Findings, Found
from cacheyd.terminal.kubernetes import look_through

# The most bytes that are read.
MAX_TEXT = 128 << 20
# Lines that a list of images never has: `key:`, `- key:`, and the lines between documents.
_YAML_LINE = re.compile(
    r"""^(?:---|%YAML|[ ]*(?:-[ ]+)*(?:"[^"\n]*"|'[^'\n]*'|[^\s#"'][^\s#]*)[ ]*:(?:[ \t\r]|$))""", re.MULTILINE
)


def read_images(data: bytes) -> Found:
    """The images of a list or of Kubernetes objects. Raises ValueError: with the number of a document that cannot be read, or
    with the line of a list that is no image name.
    """
    if len(data) > MAX_TEXT:
        raise ValueError(f"more than {MAX_TEXT >> 20} MiB")
    text = _decoded(data)
    if text.lstrip()[:1] in ("{", "["):
        return _in_objects(json_documents(text), text, shared=False)
    if _YAML_LINE.search(text):
        return _in_objects(yaml_documents(text), text, shared=True)
    return _in_list(text)


def _in_list(text: str) -> Found:
    found = Findings()
    for number, line in enumerate(text.splitlines(), 1):
        for name in read_list([line]):
            try:
                parse_image(name)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            found.take(name)
    return found.found(nothing="only comments are in it" if text.strip() else "it is empty")


def read_list(lines: list[str]) -> list[str]:
    """The image names of a list: one name in each line, `#` begins a comment."""
    return [name for line in lines if (name := line.partition("#")[0].strip())]


def _decoded(data: bytes) -> str:
    # PowerShell's `>` writes UTF-16.
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"not a text: byte {error.start} is not {encoding.removesuffix('-sig').upper()}") from None


def _in_objects(documents: Iterator[object], text: str, *, shared: bool) -> Found:
    found = Findings()
    number = 0
    try:
        for number, document in enumerate(documents, 1):
            look_through(document, number, found, shared=shared)
    except Unreadable as error:
        hint = "; a template has to be rendered first (helm template)" if "{{" in text else ""
        raise ValueError(f"document {number + 1}: {error}{hint}") from None
    return found.found(
        nothing=f"no image is in its {counted(found.containers, 'container')}"
        if found.containers
        else "no Kubernetes object with containers is in it"
    )
