"""The texts of the tools that change something: `rm`, `gc`, `verify`, `release`."""

from typing import Any

from cacheyd.observe.wording import counted, shown_size
from cacheyd.terminal.tables import some


def is_anything(result: dict[str, Any]) -> bool:
    """Whether a removal removes anything."""
    return bool(result.get("objects") or result.get("tags") or result.get("images"))


def removed(result: dict[str, Any]) -> str:
    """The text about the result of `rm`: what was removed, or with `--dry-run` what would be removed."""
    lines = [f"not found: {name}" for name in result["not_found"]]
    lines += [f"stays: {one['manifest']}, as {some(one['needed_by'])} needs it" for one in result["stays"]]
    if not is_anything(result):
        return "".join(f"{line}\n" for line in lines or ["nothing found"])
    word = "would be removed" if result["dry_run"] else "removed"
    tags = {one["name"] for one in result["stays"]}
    lines += [f"{word}: {name}{', the tag only' if name in tags else ''}" for name in result["images"]]
    lines.append(
        f"{counted(result['objects'], 'object')} and {counted(result['tags'], 'tag')} {word}, {shown_size(result['bytes'])}"
    )
    if result["kept"]:
        lines.append(f"{counted(result['kept'], 'object')} kept for other images")
    return "".join(f"{line}\n" for line in lines)


def collected(result: dict[str, Any]) -> str:
    """The text about the result of `gc`."""
    names = {
        "lost": "rows without their file dropped",
        "adopted": "files without a row taken up",
        "partials": "partial files removed",
        "tags": "old tags forgotten",
        "evicted": "objects evicted to keep the bounds",
        "unreferenced": "blobs removed that no manifest needs",
    }
    lines = [f"{result[key]} {text}" for key, text in names.items() if result.get(key)]
    lines.append(f"{shown_size(result['freed'])} freed; {counted(result['objects'], 'object')} left")
    return "".join(f"{line}\n" for line in lines)


def verified(result: dict[str, Any]) -> str:
    """The text about the result of `verify`."""
    lines = [f"dropped: {digest}" for digest in result["dropped"]]
    bad = len(result["dropped"])
    what = f"{bad} did not have their digest" if bad else "all have their digest"
    lines.append(f"{counted(result['checked'], 'object')} checked, {shown_size(result['bytes'])}: {what}")
    return "".join(f"{line}\n" for line in lines)


def released(result: dict[str, Any]) -> str:
    """The text about the result of `release`."""
    lines = [f"not held: {name}" for name in result["not_found"]]
    lines += [f"released: {row['image']} ({row['digest']})" for row in result["released"]]
    return "".join(f"{line}\n" for line in lines)
