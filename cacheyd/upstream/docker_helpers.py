"""Asks docker's credential helpers for logins.

Source: https://github.com/docker/docker-credential-helpers (the protocol of `get`).
"""

from cacheyd.protocol.registries import DOCKER_HUB
from cacheyd.upstream.programs import DEADLINE, HelperError, checked_login, parse_answer, run

# The name of docker's own registry for helpers and in auth files.
DOCKER_SERVER = "https://index.docker.io/v1/"
_NOT_FOUND = "credentials not found"
_TOKEN_USER = "<token>"  # noqa: S105


def executable(helper: str) -> str:
    """The program of a docker credential helper."""
    return f"docker-credential-{helper}"


def server_of(registry: str) -> str:
    """The server name with which to ask a helper for the login of a registry."""
    return DOCKER_SERVER if registry == DOCKER_HUB else registry


async def docker_login(helper: str, server: str, deadline: float = DEADLINE) -> str:
    """The login that a docker credential helper has for a server; empty if it has none. Raises HelperError."""
    name = executable(helper)
    try:
        output = await run([name, "get"], server.encode(), deadline)
    except HelperError as error:
        if _NOT_FOUND in str(error):
            return ""
        raise
    answer = {key.lower(): value for key, value in parse_answer(name, output).items()}
    username, secret = answer.get("username"), answer.get("secret")
    if username == _TOKEN_USER:
        raise HelperError(f"{name} gave an identity token, which cacheyd cannot use")
    return checked_login(name, username, secret)
