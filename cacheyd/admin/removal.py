"""Works out which objects a removal removes, and which stay because other images need them."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TypedDict

from cacheyd.admin.inventory import Inventory
from cacheyd.admin.selection import Root, Target
from cacheyd.protocol.reference import Kind


class Staying(TypedDict):
    """A manifest that stays although the removal means the image `name`: other images need it. A tag is removed anyway."""

    name: str
    manifest: str
    needed_by: list[str]


@dataclass(frozen=True, slots=True)
class Removal:
    """The result: images by name, tags (`registry/repository:tag`) and objects by digest that are removed.

    `asked` are the objects that the user named by digest. `bytes` is the size of the removed objects, `kept` the number of
    objects that stay for other images. `stays` are the images whose manifest stays.
    """

    images: Sequence[str] = ()
    tags: Sequence[str] = ()
    objects: Sequence[str] = ()
    asked: Set[str] = frozenset()
    bytes: int = 0
    kept: int = 0
    not_found: Sequence[str] = ()
    stays: Sequence[Staying] = ()


def removal_of_everything(inventory: Inventory) -> Removal:
    """The removal of all images, tags and objects."""
    images = list(dict.fromkeys(root.name for root in inventory.roots))
    size = sum(stored.size for stored in inventory.objects.values())
    return Removal(images, list(inventory.tags), list(inventory.objects), set(inventory.objects), size)


def removal_of(inventory: Inventory, targets: Sequence[Target]) -> Removal:
    """The removal of these targets: their tags, the objects that they name by digest, and the objects that only they need.

    Raises Ambiguous.
    """
    going: set[Root] = set()
    tags: dict[str, None] = {}
    asked: set[str] = set()
    not_found = []
    for target in targets:
        objects = inventory.named(target)
        roots = [root for root in inventory.roots if target.covers(root) or root.digest in objects]
        named = [name for name in inventory.tags if target.covers_tag(name)]
        if not objects and not roots and not named:
            not_found.append(target.text)
        asked |= objects
        going.update(roots)
        # If a pattern means an image by its digest, the image's tags are removed, too.
        tags |= dict.fromkeys([*named, *(root.name for root in roots if root.tag)])
    reached = inventory.walk([*(root.digest for root in going), *asked]).stored
    staying = [root for root in inventory.roots if root not in going and root.digest not in asked]
    needed = set(inventory.walk([root.digest for root in staying], asked).stored)
    objects_going = [digest for digest in reached if digest not in needed]
    return Removal(
        images=sorted(root.name for root in going if root.tag or root.digest not in needed),
        tags=list(tags),
        objects=objects_going,
        asked=asked,
        bytes=sum(inventory.objects[digest].size for digest in objects_going),
        kept=len(reached) - len(objects_going),
        not_found=not_found,
        stays=[_staying(inventory, root, staying) for root in sorted(root for root in going if root.digest in needed)],
    )


def _staying(inventory: Inventory, root: Root, others: Sequence[Root]) -> Staying:
    needed_by = [other.name for other in others if root.digest in inventory.parts(other.digest).stored]
    return {"name": root.name, "manifest": root.by_digest, "needed_by": needed_by}


def unreferenced(inventory: Inventory, before: float) -> list[str]:
    """The blobs that no stored manifest needs, and that were neither stored nor used since `before` (epoch seconds)."""
    needed = {digest for stored in inventory.objects.values() for digest in stored.needs}
    return [
        stored.digest
        for stored in inventory.objects.values()
        if stored.kind is Kind.BLOB and stored.digest not in needed and max(stored.used, stored.created) < before
    ]
