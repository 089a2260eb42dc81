"""Works out how much of the disk each registry and each repository takes."""

from typing import TypedDict

from cacheyd.admin.inventory import Inventory
from cacheyd.store.records import Stored


class Usage(TypedDict):
    """The disk space of a repository or a registry. `unique` counts the bytes of objects that no other one uses."""

    name: str
    objects: int
    bytes: int
    unique: int


class RegistryUsage(Usage):
    """The disk space of a registry, with its repositories."""

    repositories: list[Usage]


class DiskUsage(TypedDict):
    """The disk space of all. An object that several repositories use counts in each of them, and once in the total."""

    objects: int
    bytes: int
    registries: list[RegistryUsage]


def disk_usage(inventory: Inventory) -> DiskUsage:
    """The disk space of each registry and repository, the largest first."""
    users: dict[str, set[str]] = {stored.digest: set(stored.within) for stored in inventory.objects.values()}
    for root in inventory.roots:
        for digest in inventory.parts(root.digest).stored:
            users[digest].add(root.repository)
    registries: dict[str, RegistryUsage] = {}
    repositories: dict[str, Usage] = {}
    for stored in inventory.objects.values():
        names = users[stored.digest] - {""} or {""}
        hosts = {name.partition("/")[0] for name in names}
        for host in hosts:
            registry = registries.setdefault(host, {"name": host, "objects": 0, "bytes": 0, "unique": 0, "repositories": []})
            _count(registry, stored, alone=len(hosts) == 1)
        for name in names:
            _count(repositories.setdefault(name, _nothing(name)), stored, alone=len(names) == 1)
    for usage in sorted(repositories.values(), key=_largest_first):
        host, _, repository = usage["name"].partition("/")
        registries[host]["repositories"].append({**usage, "name": repository})
    return {
        "objects": len(inventory.objects),
        "bytes": sum(stored.size for stored in inventory.objects.values()),
        "registries": sorted(registries.values(), key=_largest_first),
    }


def _nothing(name: str) -> Usage:
    return {"name": name, "objects": 0, "bytes": 0, "unique": 0}


def _count(usage: Usage, stored: Stored, *, alone: bool) -> None:
    usage["objects"] += 1
    usage["bytes"] += stored.size
    usage["unique"] += stored.size if alone else 0


def _largest_first(usage: Usage) -> tuple[int, str]:
    return -usage["bytes"], usage["name"]
