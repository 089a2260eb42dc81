"""The texts of the tools that show something: `ls`, `du`, `held`, `stats`."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from cacheyd.observe.wording import counted, shown_size
from cacheyd.terminal.tables import Row, ago, pairs, shown_digest, some, span, table


def listed(rows: Sequence[dict[str, Any]]) -> str:
    """The table of `ls`: images, or with `--blobs` objects."""
    if not rows:
        return "nothing found\n"
    now, short = time.time(), sys.stdout.isatty()
    if "images" in rows[0]:
        head: Row = ("DIGEST", "SIZE", "KIND", "USED", "HITS", "IMAGES")
        body: list[Row] = [
            (shown_digest(row["digest"], short), shown_size(row["size"]), row["kind"], ago(row["used"], now),
             str(row["hits"]), some(row["images"] or row["repositories"]))
            for row in rows
        ]  # fmt: skip
        return table(head, body, right={1, 4})
    head = ("IMAGE", "DIGEST", "SIZE", "STATE", "USED", "HITS", "PLATFORMS")
    body = [
        (_name(row, short), shown_digest(row["digest"], short), shown_size(row["size"]), _state(row), ago(row["used"], now),
         str(row["hits"]), _platforms(row["platforms"]))
        for row in rows
    ]  # fmt: skip
    return table(head, body, right={2, 5})


def _name(row: dict[str, Any], short: bool) -> str:
    name = "/".join(part for part in (row["registry"], row["repository"]) if part) or "(unknown)"
    return f"{name}:{row['tag']}" if row["tag"] else f"{name}@{shown_digest(row['digest'], short)}"


def _state(row: dict[str, Any]) -> str:
    if row["missing"]:
        state = f"{counted(len(row['missing']), 'blob')} missing"
    else:
        state = "complete" if row["complete"] else "no platform"
    return f"{state}, pinned" if row["pinned"] else state


def _platforms(platforms: Sequence[dict[str, Any]]) -> str:
    images = [row for row in platforms if row["platform"] != "attestation"]
    here = [f"{row['platform'] or '?'}{' partly' if row['missing'] else ''}" for row in images if row["stored"]]
    return f"{', '.join(here) or 'none'} ({len(here)} of {len(images)})" if images else "-"


def usage(result: dict[str, Any]) -> str:
    """The table of `du`: the disk space of each registry and repository."""
    body: list[Row] = []
    for registry in result["registries"]:
        body.append(_usage_row(registry["name"] or "(unknown)", registry))
        body += [_usage_row(f"  {row['name']}", row) for row in registry["repositories"] if row["name"]]
    body.append(("total", str(result["objects"]), shown_size(result["bytes"]), ""))
    return table(("REGISTRY, REPOSITORY", "OBJECTS", "SIZE", "ONLY HERE"), body, right={1, 2, 3})


def _usage_row(name: str, usage: dict[str, Any]) -> Row:
    return name, str(usage["objects"]), shown_size(usage["bytes"]), shown_size(usage["unique"])


def holds(rows: Sequence[dict[str, Any]], result: dict[str, Any]) -> str:
    """The table of `held`: the tags that are held."""
    if not rows:
        other = result.get("other", 0)
        more = f"; these settings have no min_age, others (--config) would hold {counted(other, 'tag')}" if other else ""
        return f"nothing is held{more}\n"
    now, short = time.time(), sys.stdout.isatty()
    body: list[Row] = [
        (row["image"], shown_digest(row["digest"], short), shown_digest(row["served"], short) if row["served"] else "nothing",
         ago(row["since"], now), f"in {span(row['until'] - now)}", row["reason"])
        for row in rows
    ]  # fmt: skip
    return table(("IMAGE", "HELD", "SERVED", "SINCE", "ENDS", "REASON"), body, right=set())


def totals(result: dict[str, Any]) -> str:
    """The text of `stats`: the totals of the store and of the running cacheyd."""
    store, server = result["store"], result["server"]
    size, oldest, free = store["max_size"], store["oldest_use"], store["free"]
    rows = [
        ("cache directory", store["cache_dir"]),
        (
            "stored",
            f"{counted(store['manifests'], 'manifest')} and {counted(store['blobs'], 'blob')}, {shown_size(store['bytes'])}",
        ),
        ("tags", str(store["tags"])),
        ("max_size", f"{shown_size(size)} ({100 * store['bytes'] / size:.0f} % used)" if size else "no limit"),
        ("min_free", shown_size(store["min_free"])),
        ("free", f"{'unknown' if free is None else shown_size(free)} of {shown_size(store['disk'])}"),
        ("oldest use", ago(oldest, time.time()) if oldest else "-"),
        ("index", shown_size(store["index_bytes"])),
        ("partial files", f"{store['partial_files']}, {shown_size(store['partial_bytes'])}"),
    ]
    if server is None:
        return pairs([*rows, ("running", "no cacheyd has this directory now")])
    total = server["hits"] + server["misses"]
    rate = f" ({100 * server['hit_ratio']:.1f} %)" if total else ""
    evictions = ", ".join(f"{count} ({reason})" for reason, count in sorted(server["evictions"].items()))
    rows += [
        ("running", f"cacheyd {server['version']}, for {span(server['uptime'])}"),
        ("hits", f"{server['hits']} of {total} requests{rate}"),
        ("sent", ", ".join(f"{shown_size(count)} from {source}" for source, count in server["bytes"].items())),
        ("removed", evictions or "nothing"),
        ("being fetched", str(server["flights"])),
    ]
    return pairs(rows)
