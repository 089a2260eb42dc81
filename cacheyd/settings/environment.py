"""Tells environment variables that are settings from variables that Kubernetes sets for a Service."""

import re
from collections.abc import Mapping

PREFIX = "CACHEYD_"
_SERVICE = re.compile(
    r"CACHEYD_(?:\w+_)?SERVICE_(?:HOST|PORT(?:_\w+)?)|CACHEYD_PORT_\w+|CACHEYD_\w+_PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?",
    re.ASCII,
)
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://")


def is_of_service(name: str, value: str) -> bool:
    """Whether Kubernetes set this variable. It sets such variables in every pod beside a Service `cacheyd` or `cacheyd-…`.

    Examples: CACHEYD_PORT=tcp://10.0.0.1:3000 and CACHEYD_PORT_3000_TCP_ADDR=10.0.0.1.
    """
    return bool(_SERVICE.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_URL.match(value)))


def is_set(environ: Mapping[str, str], name: str) -> bool:
    """Whether a variable has a value that is meant as a setting."""
    return bool(environ.get(name)) and not (name.startswith(PREFIX) and is_of_service(name, environ[name]))
