"""What configs/ has for clients other than containerd: valid, of one mind with the rest, and what cacheyd understands."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cacheyd.protocol.reference import Kind, Reference
from cacheyd.protocol.registries import canonical_registry
from cacheyd.protocol.targets import parse_target
from cacheyd.settings.load import load

CONFIGS = Path(__file__).parents[2] / "configs"
CONTAINERS = ["cri-o", "podman"]
REGISTRIES = {"docker.io", "ghcr.io", "quay.io", "registry.k8s.io"}
SETTING = re.compile(r'`default_registry = "([^"]+)"`')


def node_port() -> int:
    """The port that all the other configurations have, too."""
    text = (CONFIGS / "kubernetes" / "cacheyd.yaml").read_text("utf-8")
    (service,) = [document for document in yaml.safe_load_all(text) if document["kind"] == "Service"]
    port: int = service["spec"]["ports"][0]["nodePort"]
    return port


def authority() -> str:
    return f"127.0.0.1:{node_port()}"


def containers(name: str, *, enabled: bool = False) -> list[dict[str, Any]]:
    """The tables of a registries.conf; with `enabled` also those that are commented out."""
    text = (CONFIGS / name / "registries.conf").read_text("utf-8")
    if enabled:
        text = re.sub(r"^# ?(?=\[\[|\w[\w-]* = |$)", "", text, flags=re.MULTILINE)
    content = tomllib.loads(text)
    # Nothing that would overrule what is in the main file, as this one is a drop-in.
    assert set(content) == {"registry"}
    tables: list[dict[str, Any]] = content["registry"]
    return tables


def registries_yaml() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONFIGS / "k3s" / "registries.yaml").read_text("utf-8"))
    return content


def daemon_json() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((CONFIGS / "docker" / "daemon.json").read_text("utf-8"))
    return content


def asked(mirror: str, repository: str, *, ns: str = "") -> Reference:
    """What cacheyd understands when containers/image, or BuildKit with `ns`, asks this mirror for a repository."""
    host, _, prefix = mirror.partition("/")
    assert host == authority()
    found = parse_target(f"/v2/{prefix}/{repository}/manifests/1.0" + (f"?ns={ns}" if ns else ""))
    assert isinstance(found, Reference)
    return found


# containers/image: podman, buildah, skopeo, CRI-O (containers-registries.conf(5))


@pytest.mark.parametrize("name", CONTAINERS)
def test_each_registry_has_its_mirror_before_it(name: str) -> None:
    assert {table["prefix"] for table in containers(name)} == REGISTRIES
    for table in containers(name):
        assert table["location"] == table["prefix"]
        # Only the mirror is plain http.
        assert "insecure" not in table
        (mirror,) = table["mirror"]
        assert mirror["insecure"] is True
        assert mirror.get("pull-from-mirror", "all") == "all"
        assert set(mirror) <= {"location", "insecure", "pull-from-mirror"}


@pytest.mark.parametrize("name", CONTAINERS)
def test_cacheyd_reads_the_registry_out_of_the_path(name: str) -> None:
    for table in containers(name):
        (mirror,) = table["mirror"]
        found = asked(mirror["location"], "acme/app")
        assert (found.registry, found.repository, found.kind) == (table["prefix"], "acme/app", Kind.MANIFEST)


def test_registry_with_a_port_has_a_name_without_one(tmp_path: Path) -> None:
    """What is commented out is valid, and cacheyd's setting beside it is, too."""
    (table,) = [table for table in containers("podman", enabled=True) if table["prefix"] not in REGISTRIES]
    (mirror,) = table["mirror"]
    host, _, name = mirror["location"].partition("/")
    assert host == authority()
    assert ":" not in name
    text = (CONFIGS / "podman" / "registries.conf").read_text("utf-8")
    setting = re.search(r'(\[registries\."[^"]+"\]) with (upstream = "[^"]+")', text)
    assert setting
    (tmp_path / "cacheyd.toml").write_text("\n".join(setting.groups()), "utf-8")
    loaded = load(file=str(tmp_path / "cacheyd.toml"), environ={})
    assert loaded.upstreams(asked(mirror["location"], "acme/app").registry) == (f"https://{table['location']}",)


# BuildKit: mirrors with a path (docs/buildkitd.toml.md); it sends ns as well


def test_buildkit_names_the_registry_twice() -> None:
    tables = tomllib.loads((CONFIGS / "buildkit" / "buildkitd.toml").read_text("utf-8"))
    assert set(tables) == {"registry"}
    assert tables["registry"].pop(authority()) == {"http": True}
    assert set(tables["registry"]) == REGISTRIES
    for registry, table in tables["registry"].items():
        (mirror,) = table.pop("mirrors")
        assert table == {}
        assert asked(mirror, "acme/app").name == asked(mirror, "acme/app", ns=registry).name == f"{registry}/acme/app"


# docker


def test_docker_has_a_mirror_and_nothing_else() -> None:
    assert daemon_json() == {"registry-mirrors": [f"http://{authority()}"]}


def test_docker_needs_the_default_registry_that_its_readme_names(tmp_path: Path) -> None:
    """dockerd asks its mirrors for Docker Hub alone, and does not say so."""
    target = "/v2/library/alpine/manifests/3.22"
    named = SETTING.search((CONFIGS / "docker" / "README.md").read_text("utf-8"))
    assert named
    (tmp_path / "cacheyd.toml").write_text(f'default_registry = "{named[1]}"\n', "utf-8")
    loaded = load(file=str(tmp_path / "cacheyd.toml"), environ={})
    found = parse_target(target, loaded.default_registry)
    assert isinstance(found, Reference)
    assert (found.registry, found.repository) == ("docker.io", "library/alpine")
    assert loaded.upstreams(found.registry) == ("https://registry-1.docker.io",)
    # It is not the default of any other configuration: there, a request that says nothing is a mistake.
    assert load(environ={}).default_registry == ""


# k3s


def test_k3s_asks_cacheyd_for_every_registry() -> None:
    assert registries_yaml() == {"mirrors": {"*": {"endpoint": [f"http://{authority()}"]}}}


def test_k3s_example_takes_a_registry_out() -> None:
    text = (CONFIGS / "k3s" / "registries.yaml").read_text("utf-8")
    enabled, changes = re.subn(r"^  # (?=registry\.internal| +endpoint:| +- \"https)", "  ", text, flags=re.MULTILINE)
    assert changes == 3
    mirrors = yaml.safe_load(enabled)["mirrors"]
    assert set(mirrors) == {"*", "registry.internal:5000"}
    assert canonical_registry("registry.internal:5000") in mirrors["registry.internal:5000"]["endpoint"][0]


# All of them


@pytest.mark.parametrize("folder", ["buildkit", "cri-o", "docker", "k3s", "podman"])
def test_the_port_is_the_one_of_the_service(folder: str) -> None:
    for path in (CONFIGS / folder).iterdir():
        ports = re.findall(r"127\.0\.0\.1:(\d+)", path.read_text("utf-8"))
        assert set(ports) == {str(node_port())}, path


@pytest.mark.parametrize(
    "path",
    ["buildkit/buildkitd.toml", "cri-o/registries.conf", "docker/README.md", "k3s/registries.yaml", "podman/registries.conf"],
)
def test_it_says_where_it_goes_and_what_happens_without_cacheyd(path: str) -> None:
    text = (CONFIGS / path).read_text("utf-8")
    comments = " ".join(line.lstrip("# ") for line in text.splitlines())
    assert "When cacheyd is down" in comments
    assert "/etc/" in comments
