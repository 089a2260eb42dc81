"""The orders about images: warm, export, and the steps of an import."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, override

from cacheyd.admin.orders import Args, Order, are_texts, given
from cacheyd.protocol.digest import DIGEST
from cacheyd.protocol.images import ImageName, parse_image
from cacheyd.protocol.platforms import Platform, own_platform, parse_platform
from cacheyd.store import partial_files

# The number of layers that are fetched at once by default, and the most that a user can ask for.
LAYERS, MAX_LAYERS = 4, 64


@dataclass(frozen=True, slots=True)
class Warm(Order):
    """Pulls images into the cache. `platforms` None means all; `logins` are `user:password` by the image's full name.

    `layers` is the number of layers that are fetched at once. With `referrers`, everything that refers to the images comes,
    too: for example signatures and SBOMs.
    """

    command: ClassVar[str] = "warm"
    images: tuple[ImageName, ...]
    platforms: tuple[Platform, ...] | None
    logins: Mapping[str, str] = field(default_factory=dict, repr=False)
    layers: int = LAYERS
    referrers: bool = False

    @override
    def args(self) -> Args:
        return {
            "images": [str(image) for image in self.images],
            "platforms": None if self.platforms is None else [str(platform) for platform in self.platforms],
            "logins": dict(self.logins),
            "layers": self.layers,
            **given(referrers=self.referrers),
        }

    @classmethod
    @override
    def parse(cls, args: Mapping[str, Any]) -> Self:
        # An order without `platforms` is for this machine's platform.
        images, platforms, logins = args.get("images"), args.get("platforms", []), args.get("logins", {})
        layers, referrers = args.get("layers", LAYERS), args.get("referrers", False)
        if not (are_texts(images) and images):
            raise ValueError("no image is named")
        if platforms is not None and not are_texts(platforms):
            raise ValueError("platforms must be a list of texts")
        if not isinstance(logins, dict) or not are_texts(list(logins.values())):
            raise ValueError("logins must be texts by image")
        if not isinstance(layers, int) or not 1 <= layers <= MAX_LAYERS:
            raise ValueError(f"from 1 to {MAX_LAYERS} layers can be fetched at once")
        if not isinstance(referrers, bool):
            raise ValueError("referrers must be true or false")
        wanted = None if platforms is None else tuple(map(parse_platform, platforms)) or (own_platform(),)
        return cls(tuple(map(parse_image, dict.fromkeys(images))), wanted, logins, layers, referrers)


@dataclass(frozen=True, slots=True)
class Export(Order):
    """Asks which objects belong to images; with `referrers` also to the tags in the cache that refer to these images."""

    command: ClassVar[str] = "export"
    images: tuple[ImageName, ...]
    referrers: bool = False

    @override
    def args(self) -> Args:
        return {"images": [str(image) for image in self.images], "referrers": self.referrers}

    @classmethod
    @override
    def parse(cls, args: Mapping[str, Any]) -> Self:
        return cls(tuple(map(parse_image, _texts(args, "images"))), bool(args.get("referrers")))


@dataclass(frozen=True, slots=True)
class ImportRoom(Order):
    """Asks the cache to make room for an object of `size` bytes."""

    command: ClassVar[str] = "import-room"
    size: int

    @override
    def args(self) -> Args:
        return {"size": self.size}

    @classmethod
    @override
    def parse(cls, args: Mapping[str, Any]) -> Self:
        if not isinstance(args["size"], int):
            raise TypeError
        return cls(args["size"])


@dataclass(frozen=True, slots=True)
class ImportObject(Order):
    """Makes a file in CACHE_DIR/partial an object of the repositories `within`; `media_type` is empty for blobs."""

    command: ClassVar[str] = "import-object"
    file: str
    digest: str
    media_type: str
    within: tuple[str, ...]

    @override
    def args(self) -> Args:
        return {"file": self.file, "digest": self.digest, "media_type": self.media_type, "within": list(self.within)}

    @classmethod
    @override
    def parse(cls, args: Mapping[str, Any]) -> Self:
        # `file` must have the name of an import's file: so a tool cannot name any other file.
        file, digest, media_type, within = args["file"], args["digest"], args["media_type"], _texts(args, "within")
        if not isinstance(media_type, str):
            raise TypeError
        if not partial_files.IMPORT.fullmatch(file) or not DIGEST.fullmatch(digest) or not within:
            raise ValueError("not a file of an import")
        return cls(file, digest, media_type, tuple(parse_image(repository).name for repository in within))


@dataclass(frozen=True, slots=True)
class ImportCheck(Order):
    """Asks which of these objects are no longer in the cache."""

    command: ClassVar[str] = "import-check"
    digests: tuple[str, ...]

    @override
    def args(self) -> Args:
        return {"digests": list(self.digests)}

    @classmethod
    @override
    def parse(cls, args: Mapping[str, Any]) -> Self:
        return cls(tuple(_texts(args, "digests")))


@dataclass(frozen=True, slots=True)
class ImportTag(Order):
    """Sets a tag to a manifest that is in the cache."""

    command: ClassVar[str] = "import-tag"
    image: ImageName
    digest: str

    @override
    def args(self) -> Args:
        return {"image": str(self.image), "digest": self.digest}

    @classmethod
    @override
    def parse(cls, args: Mapping[str, Any]) -> Self:
        image, digest = args["image"], args["digest"]
        if not isinstance(image, str) or not isinstance(digest, str):
            raise TypeError
        return cls(parse_image(image), digest)


def _texts(args: Mapping[str, Any], key: str) -> list[str]:
    given = args[key]
    if not are_texts(given):
        raise TypeError
    return given
