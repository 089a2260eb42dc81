"""What configs/ and the Dockerfile say is valid, is what cacheyd understands, and agrees from file to file."""

from __future__ import annotations

import email
import json
import re
import subprocess
import tomllib
from email.message import Message
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hcl2
import kubernetes_validate
import pytest
import yaml

from cacheyd.protocol.reference import Reference
from cacheyd.protocol.targets import parse_target
from cacheyd.settings import settings as config
from cacheyd.settings.load import load

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
CONTAINERD = CONFIGS / "containerd"
KUBERNETES = CONFIGS / "kubernetes"
EKS = CONFIGS / "terraform" / "eks"
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")

# A release that old clusters run, and the newest one that there are schemas for.
KUBERNETES_VERSIONS = ["1.30", kubernetes_validate.latest_version()]
CERTS_D = "/etc/containerd/certs.d"
PLUGIN_1 = "io.containerd.grpc.v1.cri"
PLUGIN_2 = "io.containerd.cri.v1.images"
LABELS = {"app.kubernetes.io/name": "cacheyd"}


def toml_file(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text("utf-8"))


@cache
def manifests() -> dict[str, dict[str, Any]]:
    """Every Kubernetes object by kind; there is one of each."""
    files = sorted(KUBERNETES.glob("*.yaml"))
    objects = [document for file in files for document in yaml.safe_load_all(file.read_text("utf-8"))]
    by_kind = {document["kind"]: document for document in objects}
    assert len(by_kind) == len(objects)
    return by_kind


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = manifests()["Deployment"]["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (only,) = pod()["containers"]
    assert isinstance(only, dict)
    return only


def service_port() -> dict[str, Any]:
    (only,) = manifests()["Service"]["spec"]["ports"]
    assert isinstance(only, dict)
    return only


def mirror() -> str:
    """Where a node finds cacheyd: the Service's NodePort on itself."""
    return f"http://127.0.0.1:{service_port()['nodePort']}"


def schema_errors(document: dict[str, Any], version: str) -> list[str]:
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [error.message]
    return []


# TOML


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.toml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_toml_parses(path: Path) -> None:
    assert toml_file(path)


def test_the_sample_shows_every_setting_with_its_default() -> None:
    sample = CONFIGS / "cacheyd.toml"
    text = sample.read_text("utf-8")
    loaded = load(file=str(sample), environ={})
    defaults = load(environ={})
    for setting in config.SETTINGS:
        assert re.search(rf"^(# )?{setting.name} = ", text, re.MULTILINE), f"add {setting.key} to configs/cacheyd.toml"
    for setting in config.GLOBAL:
        assert getattr(loaded, setting.name) == getattr(defaults, setting.name), f"{setting.name} has another default there"
    for setting in config.DEFAULTS:
        mine, right = getattr(loaded.defaults, setting.name), getattr(defaults.defaults, setting.name)
        assert mine == right, f"{setting.key} has another default there"
    assert loaded.upstreams("docker.io") == defaults.upstreams("docker.io")


def test_the_sample_names_the_settings_that_take_a_restart() -> None:
    text = (CONFIGS / "cacheyd.toml").read_text("utf-8").replace("\n# ", " ")
    (said,) = re.findall(r"These settings take a restart: ([\w, ]+)\.", text)
    right = [setting.name for setting in config.SETTINGS if not setting.live]
    assert said.split(", ") == right, f"say at the head of configs/cacheyd.toml: {', '.join(right)}"


@pytest.mark.parametrize("source", ["cacheyd.toml", "configmap.yaml"])
def test_what_is_commented_out_of_the_samples_is_valid_too(source: str, tmp_path: Path) -> None:
    text = (CONFIGS / source).read_text("utf-8") if source == "cacheyd.toml" else config_map()["cacheyd.toml"]
    enabled = re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE)
    # A table of TOML takes each key once, so what is there as a default goes where an example follows.
    lines = enabled.splitlines()
    keys = [line.partition(" = ")[0] if " = " in line else "" for line in lines]
    tables = list(accumulate(lines, lambda table, line: line if line.startswith("[") else table, initial=""))[1:]
    enabled = "\n".join(
        line
        for i, line in enumerate(lines)
        if not keys[i] or (tables[i], keys[i]) not in zip(tables[i + 1 :], keys[i + 1 :], strict=True)
    )
    for alternative in ("password_env", "password", "credential_helper", "credential_command", "auth_file"):
        enabled = re.sub(rf"^{alternative} = .*\n", "", enabled, flags=re.MULTILINE)
    for name in set(re.findall(r'"(/(?:etc|run)/[^"]+)"', enabled)):
        (tmp_path / Path(name).name).touch()
        enabled = enabled.replace(name, str(tmp_path / Path(name).name))
    (tmp_path / "cacheyd.toml").write_text(enabled, "utf-8")
    loaded = load(file=str(tmp_path / "cacheyd.toml"), environ={})
    assert enabled != text
    assert loaded.registry("registry.internal:5000").configured


# containerd


@pytest.mark.parametrize("folder", ["_default", "docker.io"])
def test_mirror_comes_before_the_registry(folder: str) -> None:
    hosts = toml_file(CONTAINERD / folder / "hosts.toml")
    assert hosts.pop("host") == {mirror(): {"capabilities": ["pull", "resolve"], "dial_timeout": "2s"}}
    # Without `server` the registry that the image names is the last resort; Docker Hub's is called differently.
    assert hosts == ({} if folder == "_default" else {"server": "https://registry-1.docker.io"})


def test_the_path_names_the_registry_of_the_file() -> None:
    hosts = toml_file(CONTAINERD / "override-path" / "hosts.toml")
    server = hosts.pop("server")
    ((url, host),) = hosts.pop("host").items()
    assert hosts == {}
    assert host == {"capabilities": ["pull", "resolve"], "dial_timeout": "2s", "override_path": True}
    registry = urlsplit(server).hostname
    assert url == f"{mirror()}/v2/{registry}"
    path = urlsplit(url).path
    for target in (f"{path}/acme/app/manifests/1.0?ns={registry}", f"{path}/acme/app/blobs/sha256:{'a' * 64}"):
        found = parse_target(target)
        assert isinstance(found, Reference)
        assert (found.registry, found.repository) == (registry, "acme/app")


def test_cacheyd_only_has_no_way_around() -> None:
    hosts = toml_file(CONTAINERD / "cacheyd-only" / "hosts.toml")
    # containerd 1.x refuses the whole file without a [host] table, and then goes to the registry.
    assert hosts == {"server": mirror(), "capabilities": ["pull", "resolve"], "host": {}}


@pytest.mark.parametrize(("file", "version", "plugin"), [("1.x", 2, PLUGIN_1), ("2.x", 3, PLUGIN_2)])
def test_containerd_looks_in_one_folder(file: str, version: int, plugin: str) -> None:
    # A list of folders is taken for one folder's name by the transfer service of containerd 2.1 and later.
    assert toml_file(CONTAINERD / f"config-{file}.toml") == {
        "version": version,
        "plugins": {plugin: {"registry": {"config_path": CERTS_D}}},
    }


# Kubernetes


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("kind", ["ConfigMap", "Deployment", "PersistentVolumeClaim", "Service"])
def test_manifest_is_valid(kind: str, version: str) -> None:
    assert schema_errors(manifests()[kind], version) == []


def test_validation_is_strict() -> None:
    typo = manifests()["Service"] | {"spce": {}}
    assert schema_errors(typo, KUBERNETES_VERSIONS[-1]) != []


def test_objects_belong_together() -> None:
    assert set(manifests()) == {"ConfigMap", "Deployment", "PersistentVolumeClaim", "Service", "ServiceMonitor"}
    for kind, document in manifests().items():
        assert document["metadata"]["name"] == "cacheyd"
        assert document["metadata"]["namespace"] == ("monitoring" if kind == "ServiceMonitor" else "kube-system")
        assert document["metadata"]["labels"] == LABELS
    deployment = manifests()["Deployment"]["spec"]
    assert deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"] == LABELS
    assert manifests()["Service"]["spec"]["selector"] == LABELS


def test_node_port_leads_to_the_container() -> None:
    service = manifests()["Service"]["spec"]
    (port,) = container()["ports"]
    assert service["type"] == "NodePort"
    assert service["sessionAffinity"] == "ClientIP"
    assert service_port()["targetPort"] == port["name"] == "http"
    assert port["containerPort"] == load(environ={}).port == 3000
    assert service_port()["nodePort"] == 30123


def test_probes() -> None:
    wanted = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    probes = {name: value["httpGet"] for name, value in container().items() if name.endswith("Probe")}
    assert probes == {name: {"path": path, "port": "http"} for name, path in wanted.items()}


def test_pod_is_confined() -> None:
    assert pod()["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod()["automountServiceAccountToken"] is False
    # Kubernetes would set CACHEYD_PORT=tcp://… for the Service, and other settings for other Services.
    assert pod()["enableServiceLinks"] is False


def test_transfers_end_before_the_kill() -> None:
    assert pod()["terminationGracePeriodSeconds"] >= load(environ={}).grace + 5


def test_only_the_cache_is_writable() -> None:
    mounts = {mount["name"]: mount for mount in container()["volumeMounts"]}
    (cache_dir,) = [variable["value"] for variable in container()["env"] if variable["name"] == "CACHE_DIR"]
    assert mounts["cache"]["mountPath"] == cache_dir
    assert [name for name, mount in mounts.items() if not mount.get("readOnly")] == ["cache"]
    assert manifests()["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}


def test_volume_claim_can_take_the_place_of_the_empty_dir() -> None:
    text = (KUBERNETES / "cacheyd.yaml").read_text("utf-8")
    text = re.sub(r"^ +emptyDir:\n +sizeLimit: .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"# (persistentVolumeClaim:|  claimName: )", r"\1", text)
    deployment = next(yaml.safe_load_all(text))
    volumes = {volume["name"]: volume for volume in deployment["spec"]["template"]["spec"]["volumes"]}
    claim = manifests()["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["cache"] == {"name": "cache", "persistentVolumeClaim": {"claimName": claim}}
    assert schema_errors(deployment, KUBERNETES_VERSIONS[-1]) == []


def config_map() -> dict[str, str]:
    data: dict[str, str] = manifests()["ConfigMap"]["data"]
    return data


def test_config_map_is_optional_and_loads(tmp_path: Path) -> None:
    name = manifests()["ConfigMap"]["metadata"]["name"]
    (variable,) = [variable for variable in container()["env"] if variable["name"] == "CACHEYD_CONFIG"]
    assert variable["valueFrom"] == {"configMapKeyRef": {"name": name, "key": "CACHEYD_CONFIG", "optional": True}}
    (volume,) = [volume["configMap"] for volume in pod()["volumes"] if volume["name"] == "config"]
    (mount,) = [mount["mountPath"] for mount in container()["volumeMounts"] if mount["name"] == "config"]
    (item,) = volume.pop("items")
    assert volume == {"name": name, "optional": True}
    assert config_map()["CACHEYD_CONFIG"] == f"{mount}/{item['path']}"
    (tmp_path / "cacheyd.toml").write_text(config_map()[item["key"]], "utf-8")
    loaded = load(file=str(tmp_path / "cacheyd.toml"), environ={})
    assert loaded.grace < pod()["terminationGracePeriodSeconds"]


def test_service_monitor_finds_the_service() -> None:
    monitor = manifests()["ServiceMonitor"]
    service = manifests()["Service"]
    # A custom resource: there is no schema for it here.
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"namespaceSelector", "selector", "endpoints"}
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": [service["metadata"]["namespace"]]}
    assert monitor["spec"]["selector"] == {"matchLabels": service["metadata"]["labels"]}
    assert monitor["spec"]["endpoints"] == [{"port": service_port()["name"], "path": "/metrics", "interval": "30s"}]


# The image


def instructions(name: str) -> list[str]:
    """The arguments of each such instruction, continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.split(None, 1)[1] for line in joined.splitlines() if line.startswith(f"{name} ")]


def image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for line in instructions("ENV") for pair in line.split())


def test_image_is_the_one_that_is_deployed() -> None:
    version = toml_file(ROOT / "pyproject.toml")["project"]["version"]
    assert container()["image"] == f"ghcr.io/cacheyd/cacheyd:{version}"


def test_image_has_the_python_of_the_repository() -> None:
    python = (ROOT / ".python-version").read_text("utf-8").strip()
    assert instructions("ARG") == [f"PYTHON_VERSION={python}"]
    assert [stage.split()[0] for stage in instructions("FROM")] == ["python:${PYTHON_VERSION}-slim"] * 2


def test_image_installs_what_is_locked_and_nothing_else() -> None:
    installs = [line for line in instructions("RUN") if " install " in f" {line} " and line.startswith("pip ")]
    locked, package = installs
    assert "--require-hashes" in locked
    assert locked.endswith("-r requirements.lock")
    assert package.endswith("--no-deps .")


def test_image_gets_what_it_copies() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    sources = [source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]]
    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source


def test_image_runs_as_the_user_of_the_deployment() -> None:
    security = pod()["securityContext"]
    assert instructions("USER") == [f"{security['runAsUser']}:{security['runAsGroup']}"]


def test_image_writes_to_one_volume() -> None:
    cache_dir = image_environment()["CACHE_DIR"]
    assert instructions("VOLUME") == [cache_dir]
    assert {"name": "CACHE_DIR", "value": cache_dir} in container()["env"]
    assert image_environment()["PYTHONDONTWRITEBYTECODE"] == "1"


def test_image_starts_the_command_of_the_package() -> None:
    scripts = toml_file(ROOT / "pyproject.toml")["project"]["scripts"]
    (entrypoint,) = instructions("ENTRYPOINT")
    assert json.loads(entrypoint)[0] in scripts
    assert [json.loads(command) for command in instructions("CMD")] == [["serve"]]
    assert instructions("EXPOSE") == ["3000"]


def test_image_checks_its_health() -> None:
    (check,) = instructions("HEALTHCHECK")
    python, flag, code = json.loads(check.partition("CMD ")[2])
    assert (python, flag) == ("python", "-c")
    assert "/healthz" in code
    compile(code, "HEALTHCHECK", "exec")


# Terraform


@cache
@cache
def terraform_files() -> tuple[dict[str, Any], ...]:
    """What is in each file; a parse takes a good part of a second."""
    return tuple(hcl2.loads(file.read_text("utf-8")) for file in sorted(EKS.glob("*.tf")))


def terraform(block: str) -> dict[str, Any]:
    """All blocks of one kind, by their last label."""
    found: dict[str, Any] = {}
    for file in terraform_files():
        for entry in file.get(block, []):
            found |= {name.strip('"'): value for name, value in entry.items()}
    return found


def render(template: str, values: dict[str, str]) -> str:
    """As Terraform's templatefile, for templates that insert values and do nothing else."""
    text = (EKS / "templates" / template).read_text("utf-8")
    assert "%{" not in text
    return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], text)


def user_data(image: str, plugin: str) -> Message:
    port = str(terraform("variable")["cacheyd_node_port"]["default"])
    hosts = render("hosts.toml.tftpl", {"node_port": port})
    text = render(f"user-data-{image}.mime.tftpl", {"hosts_toml": hosts, "containerd_plugin": plugin})
    assert text.isascii()
    # EC2's limit, before base64.
    assert len(text) < 16 << 10
    return email.message_from_string(text)


def parts(message: Message) -> dict[str, str]:
    assert message["MIME-Version"] == "1.0"
    assert message.get_content_type() == "multipart/mixed"
    found = {}
    for part in message.walk():
        assert not part.defects
        if not part.is_multipart():
            found[part.get_content_type()] = str(part.get_payload())
    return found


USER_DATA = [("al2", PLUGIN_1), ("al2023", PLUGIN_1), ("al2023", PLUGIN_2)]


def test_terraform_parses_and_is_wired_up() -> None:
    template = terraform("resource")["aws_launch_template"]['"cacheyd"']
    group = terraform("resource")["aws_eks_node_group"]['"cacheyd"']
    assert template["user_data"] == "${base64encode(local.user_data)}"
    # With an image of its own, EKS would not add the part that joins the cluster.
    assert "image_id" not in template
    assert group["launch_template"][0]["id"] == "${aws_launch_template.cacheyd.id}"
    assert group["launch_template"][0]["version"] == "${aws_launch_template.cacheyd.latest_version}"
    used = set(re.findall(r"var\.(\w+)", (EKS / "main.tf").read_text("utf-8")))
    assert used == set(terraform("variable"))


def test_terraform_has_the_port_of_the_service() -> None:
    assert terraform("variable")["cacheyd_node_port"]["default"] == service_port()["nodePort"]


@pytest.mark.parametrize(("image", "plugin"), USER_DATA)
def test_user_data_writes_the_mirror_before_the_node_joins(image: str, plugin: str) -> None:
    script = parts(user_data(image, plugin))["text/x-shellscript"]
    assert script.startswith("#!/bin/bash\n")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    path, written = re.findall(r"^cat > (\S+) <<'HOSTS_TOML'\n(.*?)^HOSTS_TOML$", script, re.DOTALL | re.MULTILINE)[0]
    assert path == f"{CERTS_D}/_default/hosts.toml"
    assert tomllib.loads(written) == toml_file(CONTAINERD / "_default" / "hosts.toml")


@pytest.mark.parametrize("plugin", [PLUGIN_1, PLUGIN_2])
def test_al2023_gives_nodeadm_the_folder(plugin: str) -> None:
    node_config = yaml.safe_load(parts(user_data("al2023", plugin))["application/node.eks.aws"])
    assert node_config["apiVersion"] == "node.eks.aws/v1alpha1"
    assert node_config["kind"] == "NodeConfig"
    # No `version`: it would overrule the one that nodeadm's own template has.
    fragment = tomllib.loads(node_config["spec"].pop("containerd")["config"])
    assert fragment == {"plugins": {plugin: {"registry": {"config_path": CERTS_D}}}}
    # What belongs to the cluster is in the part that EKS adds.
    assert node_config["spec"] == {}


@pytest.mark.parametrize(
    "before",
    [
        f'version = 2\n\n[plugins."{PLUGIN_1}".registry]\nconfig_path = "{CERTS_D}:/etc/docker/certs.d"\n',
        f'version = 2\n\n[plugins."{PLUGIN_1}"]\nsandbox_image = "pause"\n',
    ],
    ids=["replaced", "added"],
)
def test_al2_edits_the_configuration_of_the_image(before: str, tmp_path: Path) -> None:
    """The script itself runs, on a copy of what it would edit."""
    script = parts(user_data("al2", PLUGIN_1))["text/x-shellscript"]
    target = tmp_path / "containerd-config.toml"
    target.write_text(before, "utf-8")
    moved = script.replace("/etc/eks/containerd/containerd-config.toml", str(target))
    moved = re.sub(rf"(?<=[ \"]){CERTS_D}/_default", str(tmp_path / "certs.d"), moved)
    for _ in range(2):
        subprocess.run(["bash"], input=moved, text=True, check=True, cwd=tmp_path)
    assert toml_file(target)["plugins"][PLUGIN_1]["registry"] == {"config_path": CERTS_D}
    assert target.read_text("utf-8").count("config_path") == 1
    assert toml_file(tmp_path / "certs.d" / "hosts.toml") == toml_file(CONTAINERD / "_default" / "hosts.toml")


def test_the_port_is_said_the_same_everywhere() -> None:
    port = service_port()["nodePort"]
    for path in CONFIGS.rglob("*"):
        if path.is_file():
            for url in re.findall(r"http://127\.0\.0\.1:\d+", path.read_text("utf-8")):
                assert urlsplit(url).port == port, path
