"""Digests (image-spec, "Digests") of the two algorithms that cacheyd can check."""

import hashlib
import re

DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}")


def digest_of(data: bytes | bytearray, algorithm: str = "sha256") -> str:
    """The digest of `data` (image-spec, "Digests")."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
