"""Asks kubelet's credential providers for logins.

Source: https://kubernetes.io/docs/reference/config-api/kubelet-credentialprovider.v1/.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from cacheyd.upstream.programs import DEADLINE, HelperError, checked_login, parse_answer, run

PROVIDER = "credentialprovider.kubelet.k8s.io/v1"
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Provided:
    """A provider's answer: logins by pattern of image. `life` is how long they hold (seconds; None if unknown).

    `of_image`: the answer is only for the image that cacheyd asked for.
    """

    logins: Mapping[str, str] = field(repr=False)
    life: float | None
    of_image: bool

    def login(self, image: str) -> str:
        """The login of the longest pattern that matches an image (in a tie, without wildcards); empty if none matches."""
        found = [pattern for pattern in self.logins if image_matches(pattern, image)]
        return self.logins[max(found, key=lambda p: (len(p), "*" not in p))] if found else ""


async def provided_login(argv: Sequence[str], image: str, deadline: float = DEADLINE) -> Provided:
    """The answer of a credential provider for an image (`registry/repository`). Raises HelperError."""
    request = {"apiVersion": PROVIDER, "kind": "CredentialProviderRequest", "image": image}
    output = await run(argv, json.dumps(request).encode(), deadline)
    return parse_provided(os.path.basename(argv[0]), output)


def parse_provided(name: str, output: bytes) -> Provided:
    """Parses a CredentialProviderResponse of v1. Raises HelperError."""
    answer = parse_answer(name, output)
    if (answer.get("apiVersion"), answer.get("kind")) != (PROVIDER, "CredentialProviderResponse"):
        raise HelperError(f"{name}: its answer is no CredentialProviderResponse of {PROVIDER}")
    kind = answer.get("cacheKeyType")
    if kind not in ("Image", "Registry", "Global"):
        raise HelperError(f"{name}: its answer has no cacheKeyType Image, Registry or Global")
    auth = answer.get("auth")
    if not isinstance(auth, dict | None):
        raise HelperError(f"{name}: its answer has an auth that is no object")
    logins = {}
    for pattern, entry in (auth or {}).items():
        fields = entry if isinstance(entry, dict) else {}
        logins[pattern] = checked_login(name, fields.get("username", ""), fields.get("password", ""))
    return Provided(logins, _seconds(name, answer.get("cacheDuration")), kind == "Image")


def _seconds(name: str, value: object) -> float | None:
    """The seconds of a duration in Go's notation (`12h0m0s`). Raises HelperError."""
    if value is None:
        return None
    text = value if isinstance(value, str) and len(value) <= 100 else ""
    if text == "0":
        return 0.0
    parts = _PART.findall(text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not parts or "".join(number + unit for number, unit in parts) != text or not math.isfinite(seconds):
        raise HelperError(f"{name}: its answer has an invalid cacheDuration; a valid one is 12h0m0s")
    return seconds


def image_matches(pattern: str, image: str) -> bool:
    """Whether a key of `auth` matches this image: the hosts have the same number of parts (the key's can have wildcards),
    the port is the same (if the key has a port), and the image's path begins with the key's path (whole components).
    """
    host, _, path = pattern.removeprefix("https://").removeprefix("http://").rstrip("/").partition("/")
    own_host, _, own_path = image.partition("/")
    host, port = _port_of(host)
    own_host, own_port = _port_of(own_host)
    labels, own_labels = host.lower().split("."), own_host.lower().split(".")
    return (
        port in ("", own_port)
        and len(labels) == len(own_labels)
        and all(own == label or fnmatchcase(own, label) for label, own in zip(labels, own_labels, strict=True))
        and f"{own_path}/".startswith(f"{path}/" if path else "")
    )


def _port_of(host: str) -> tuple[str, str]:
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and port.isdigit() else (host, "")
