"""The images in lists and in Kubernetes objects, whatever form they have, and what is refused."""

import json
import time
import tracemalloc
from typing import Any

import pytest

from cacheyd.terminal import documents, workloads
from cacheyd.terminal.documents import MAX_SIGNS
from cacheyd.terminal.findings import MAX_PROBLEMS
from cacheyd.terminal.workloads import read_images, read_list

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web-0", "namespace": "shop", "annotations": {"note": "image: not-this"}},
    "spec": {
        "initContainers": [{"name": "init", "image": "busybox:1.36"}],
        "containers": [{"name": "web", "image": "ghcr.io/acme/web:1.0"}, {"name": "none"}],
        "ephemeralContainers": [{"name": "debug", "image": "alpine"}],
        "volumes": [{"name": "v", "image": {"reference": "quay.io/acme/model:2"}}, {"name": "c", "configMap": {"name": "x"}}],
    },
    "status": {
        "containerStatuses": [{"image": "docker.io/acme/other:1", "imageID": "docker.io/acme/other@sha256:" + "a" * 64}]
    },
}
IN_POD = ["busybox:1.36", "ghcr.io/acme/web:1.0", "alpine", "quay.io/acme/model:2"]
# As `helm template` writes it.
HELM = """\
---
# Source: shop/templates/serviceaccount.yaml
apiVersion: v1
kind: ServiceAccount
metadata:
  name: shop
---
# Source: shop/templates/empty.yaml
---
# Source: shop/templates/deployment.yaml
apiVersion: apps/v1
kind: Deployment
metadata:
  name: shop
spec:
  template:
    spec:
      initContainers:
      - image: "registry.k8s.io/init:v1@sha256:{digest}"
        name: init
      containers:
        - name: shop
          image: ghcr.io/acme/shop:1.2.3   # the shop
          args: ["--image", "not-this"]
        - name: side
          image: >-
            ghcr.io/acme/side:4
---
# Source: shop/templates/cronjob.yaml
apiVersion: batch/v1
kind: CronJob
metadata: {{name: tidy}}
spec: {{jobTemplate: {{spec: {{template: {{spec: {{containers: [{{name: tidy, image: alpine:3.22}}]}}}}}}}}}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: shops.acme.test
spec:
  versions:
  - schema:
      openAPIV3Schema:
        properties:
          containers: {{type: array, items: {{properties: {{image: {{type: string}}}}}}}}
          volumes: {{type: array}}
---
apiVersion: acme.test/v1
kind: Shop
metadata:
  name: mine
spec:
  workers:
  - pods:
    - template:
        spec:
          containers:
          - name: main
            image: ghcr.io/acme/worker:9
...
"""
IN_HELM = [
    "registry.k8s.io/init:v1@sha256:" + "b" * 64,
    "ghcr.io/acme/shop:1.2.3",
    "ghcr.io/acme/side:4",
    "alpine:3.22",
    "ghcr.io/acme/worker:9",
]


def found(text: str | bytes) -> list[str]:
    read = read_images(text.encode() if isinstance(text, str) else text)
    assert read.problems == []
    return read.images


def refusal(text: str | bytes) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        read_images(text.encode() if isinstance(text, str) else text)
    return str(caught.value)


def owner(kind: str, spec: Any) -> dict[str, Any]:
    return {"apiVersion": "x/v1", "kind": kind, "metadata": {"name": "n"}, "spec": spec}


# What is read


@pytest.mark.parametrize("text", ["", "# nothing\n\n", "\ufeff"])
def test_nothing_is_nothing(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize("name", ["alpine", "reg.test:5000/app:1", "alpine:3.22 # base: small", "a/b:c", "  x  # y: z"])
def test_a_list_is_no_yaml(name: str) -> None:
    assert found(f"# images: all\n{name}\n\nother\n") == [name.partition("#")[0].strip(), "other"]


def test_a_pod() -> None:
    assert found(json.dumps(POD)) == IN_POD


def test_the_pods_of_a_cluster_name_their_images_once() -> None:
    pods = {"apiVersion": "v1", "kind": "List", "items": [POD, {**POD, "metadata": {"name": "web-1"}}]}
    assert found(json.dumps(pods, indent=4)) == IN_POD


def test_several_objects_of_json_one_after_another() -> None:
    assert found(json.dumps(POD) + "\n" + json.dumps(owner("Job", {"containers": [{"image": "a"}]}))) == [*IN_POD, "a"]
    assert found(json.dumps([POD])) == IN_POD


@pytest.mark.parametrize("kind", ["Deployment", "DaemonSet", "StatefulSet", "Job", "ReplicaSet", "Rollout"])
def test_whatever_has_a_pod_in_it(kind: str) -> None:
    assert found(json.dumps(owner(kind, {"template": {"spec": POD["spec"]}}))) == IN_POD
    cron = owner("CronJob", {"jobTemplate": {"spec": {"template": {"spec": POD["spec"]}}}})
    assert found(json.dumps(cron)) == IN_POD


def test_what_helm_renders() -> None:
    assert found(HELM.format(digest="b" * 64)) == IN_HELM


def test_line_ends_and_encodings_of_windows() -> None:
    text = HELM.format(digest="b" * 64).replace("\n", "\r\n")
    assert found(text.encode("utf-16")) == found(("\ufeff" + text).encode()) == IN_HELM
    assert found("alpine\r\nbusybox\r\n".encode("utf-16")) == ["alpine", "busybox"]


def test_anchors_aliases_and_merge_keys() -> None:
    text = """
        base: &base {name: one, image: "a:1"}
        other: &other {image: "b:1", name: two}
        spec:
          containers: [{<<: *base}, {<<: [*base, *other], image: "c:1"}, {<<: [*other, *base]}, *base]
        again: &again {containers: [{image: "d:1"}], self: *again}
        """
    assert found(text) == ["a:1", "c:1", "b:1", "d:1"]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("", "is null"),
        ("~", "is null"),
        ("null", "is null"),
        ('""', "is empty"),
        ('" "', "is empty"),
        ("[a]", "is a list, which is no text"),
        ("{a: b}", "is a mapping, which is no text"),
        ("5", "is 5, which is no text (quotes make it one)"),
        ("{{ .Values.image }}", "is no text; a template has to be rendered first (helm template)"),
        ("{{ .Values.image | quote }}", "is no text; a template has to be rendered first (helm template)"),
    ],
)
def test_what_is_no_text_is_told_with_its_place_and_stops_no_other(image: str, said: str) -> None:
    pod = f"kind: Pod\nmetadata: {{name: web}}\nspec:\n  containers:\n  - name: a\n    image: {image}\n  - image: b:1\n"
    read = read_images(f"a: 1\n---\n{pod}".encode())
    assert read.images == ["b:1"]
    assert read.problems == [f"document 2, Pod web: container a: its image {said}"]


@pytest.mark.parametrize(
    ("image", "said"), [("5", "5, which"), ("true", "true, which"), ("null", "null"), ('""', "empty"), ("NaN", "NaN")]
)
def test_so_it_is_in_json_and_for_volumes(image: str, said: str) -> None:
    pod = f'{{"containers": [{{"image": {image}}}], "volumes": [{{"name": "v", "image": {{"reference": {image}}}}}]}}'
    read = read_images(pod.encode())
    assert read.images == []
    assert [problem.partition(": its")[0] for problem in read.problems] == ["document 1: a container", "document 1: volume v"]
    assert all(f"its image is {said}" in problem for problem in read.problems)


def test_what_has_no_key_for_it_is_left_out() -> None:
    assert found("containers: [{name: a}, {image: b:1}]\nvolumes: [{name: c, image: {pullPolicy: Always}}]") == ["b:1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("\n# none\n", "only comments are in it"),
        ("kind: Service", "no Kubernetes object with containers is in it"),
        ("[]", "no Kubernetes object with containers is in it"),
        ("containers: [{image: }]", "no image is in its 1 container"),
    ],
)
def test_why_there_is_no_image_is_said(text: str, said: str) -> None:
    read = read_images(text.encode())
    assert (read.images, read.nothing) == ([], said)


def test_a_bad_name_in_a_list_has_its_line() -> None:
    assert refusal("alpine # ok\n\n  Not/An-Image\n").startswith("line 3: 'Not/An-Image' is not the name of an image")
    assert refusal("alpine\nsha256:" + "a" * 64).startswith("line 2: ")


@pytest.mark.parametrize("text", ["containers: {a: b}", "containers: [a, 1, [b]]", "volumes: [{image: x}]", "--- x", "a:"])
def test_what_only_looks_like_it_is_no_image(text: str) -> None:
    assert found(text) == []


def test_values_are_texts() -> None:
    assert found("containers:\n- image: 2026-11-25\n- image: '1.10'\n- image: 5:30\n") == ["2026-11-25", "1.10", "5:30"]


@pytest.mark.parametrize("value", ["1.10", "yes", "-3", "0x1f", "1_000", "1e3", ".5", ".inf", "Off", "FALSE", "0o17"])
def test_numbers_and_switches_are_none(value: str) -> None:
    read = read_images(f"containers: [{{image: {value}}}, {{image: 'a'}}]".encode())
    assert (read.images, len(read.problems)) == (["a"], 1)


# What is refused


def test_a_name_that_is_none_is_told_with_its_place_and_stops_no_other() -> None:
    pod = {**POD, "spec": {"containers": [{"image": "${REGISTRY}/app"}, {"image": "alpine"}]}}
    read = read_images((json.dumps(POD) + json.dumps(pod)).encode())
    assert read.images == IN_POD
    (problem,) = read.problems
    assert problem.startswith("document 2, Pod shop/web-0: '${REGISTRY}/app' is not the name of an image")


def test_the_document_that_cannot_be_read_is_named() -> None:
    said = refusal("a: 1\n---\nb: 2\n---\nc: [1\nd: }\n")
    assert said.startswith("document 3: not YAML: ")
    assert "line 6" in said
    assert refusal('{"a": 1}\n{"b": nothing}').startswith("document 2: not JSON: ")
    assert refusal('{"a": 1').startswith("document 1: not JSON: ")


def test_a_template_is_told_from_what_it_renders() -> None:
    assert "helm template" in refusal('kind: Pod\nmetadata:\n  {{- include "x" . }}\n  name: {{ .Values.name }}\n')


@pytest.mark.parametrize(
    "text",
    [
        b"a: \xff\xfe\n",
        b"kind: *nothing\n",
        b"kind: \x00\n",
        b"a: [",
        b": :",
        b"[" * 100_000,
        b"a: " + b"[" * 100_000,
        b"---\n" + b"? " * 5000 + b": a",
    ],
    ids=["bytes", "alias", "nul", "open", "colons", "json", "flow", "keys"],
)
def test_what_cannot_be_read_is_refused(text: bytes) -> None:
    assert refusal(text)


def test_more_than_can_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "MAX_TEXT", 1 << 20)
    assert refusal(b"a" * ((1 << 20) + 1)) == "more than 1 MiB"
    monkeypatch.setattr(documents, "MAX_VALUES", 1000)
    assert "more than 1000 values" in refusal("a: [" + "1," * 2000 + "]")


def bomb(merge: bool) -> str:
    """A billion laughs: what every alias doubles."""
    lines = ["a0: &a0 {k: v, containers: [{image: 'a:1'}]}"]
    for n in range(1, 40):
        before = f"*a{n - 1}"
        lines.append(
            f"a{n}: &a{n} {{<<: [{before}, {before}], k{n}: [{before}]}}" if merge else f"a{n}: &a{n} [{before}, {before}]"
        )
    return "\n".join(lines)


@pytest.mark.parametrize("merge", [False, True])
def test_aliases_cost_nothing(merge: bool) -> None:
    tracemalloc.start()
    began = time.monotonic()
    assert found(bomb(merge)) == ["a:1"]
    assert time.monotonic() - began < 2
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_merged_keys_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_VALUES", 20_000)
    large = ", ".join(f"k{n}: v" for n in range(1000))
    text = f"a: &a {{{large}}}\n" + "".join(f"b{n}: {{<<: *a}}\n" for n in range(100))
    assert "more than 20000 values" in refusal(text)


def test_a_large_cluster_is_read_in_a_moment() -> None:
    pods = [{**POD, "metadata": {"name": f"web-{n}"}} for n in range(3000)]
    began = time.monotonic()
    assert found(json.dumps({"kind": "List", "items": pods})) == IN_POD
    assert time.monotonic() - began < 5


def peak_of(text: str) -> int:
    """What reading takes at its peak (bytes), beside the text."""
    tracemalloc.start()
    try:
        read_images(text.encode())
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("key", ["containers", "volumes"])
def test_what_an_alias_stands_for_is_looked_at_once(key: str) -> None:
    item = "{image: 'A B'}" if key == "containers" else "{image: {reference: 'A B'}}"
    shared = f"a: &b [{','.join([item] * 1500)}]\nl:\n" + f"- {{{key}: *b}}\n" * 1500
    began = time.monotonic()
    read = read_images(shared.encode())
    assert (read.images, len(read.problems), read.containers) == ([], 1, 1500)
    assert time.monotonic() - began < 3
    assert peak_of(shared) < 16 << 20


def test_what_is_shared_in_other_places_is_still_found() -> None:
    text = "x: &l [{image: 'a:1', reference: 'no'}]\nl: [{containers: *l}, {initContainers: *l}, {spec: {containers: *l}}]\n"
    assert found(text) == ["a:1"]
    text = "x: &l [{image: {reference: 'b:1'}}]\nl: [{containers: *l}, {volumes: *l}]\n"
    assert read_images(text.encode()).images == ["b:1"]


def test_problems_are_told_once_and_not_all_of_them() -> None:
    pods = [{**POD, "metadata": {"name": "web"}, "spec": {"containers": [{"image": "A B"}]}}] * 50
    assert len(read_images(json.dumps(pods).encode()).problems) == 1
    pods = [{"kind": "Pod", "metadata": {"name": f"web-{n}"}, "spec": {"containers": [{"image": "A B"}]}} for n in range(250)]
    problems = read_images(json.dumps(pods).encode()).problems
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[-1] == "and 150 more"
    assert "web-99" in problems[-2]
    (problem,) = read_images(json.dumps({"containers": [{"name": "c", "image": "A" * 5_000_000}]}).encode()).problems
    assert "container c: its image is too long for a name: 'AAA" in problem
    assert len(problem) < 500


@pytest.mark.parametrize(
    "text",
    [
        "[" + "[]," * (MAX_SIGNS // 2) + "1]",
        '[{"":' + "{}," * MAX_SIGNS,
        '{"a":1}' * (MAX_SIGNS // 2 + 1),
        "[" + ":" * MAX_SIGNS,
    ],
    ids=["lists", "broken", "documents", "no JSON"],
)
def test_json_of_too_many_values_is_not_parsed(text: str) -> None:
    began = time.monotonic()
    assert f"more than {MAX_SIGNS} values" in refusal(text)
    assert time.monotonic() - began < 2
    assert peak_of("[" + "[]," * 100_000 + "1]") < 200_000 * 130


def test_the_pods_of_a_large_cluster_are_not_too_many() -> None:
    """50 MiB, as kubectl writes them: 5,000 pods."""
    env = [{"name": f"SOME_SETTING_{n}", "value": f"value-{n}"} for n in range(20)]
    status = [{"lastProbeTime": None, "lastTransitionTime": "2026-01-01T00:00:00Z", "status": "True", "type": "T"}] * 5
    several = [{"name": f"c{n}", "image": f"ghcr.io/acme/app{n}:1", "env": env} for n in range(3)]
    pod = {**POD, "spec": {"containers": several}, "status": {"conditions": status}}
    one = json.dumps(pod, indent=4).replace("\n", "\n        ")
    assert sum(map(one.count, "{[,:")) / len(one) * (50 << 20) < MAX_SIGNS
    text = '{\n    "items": [\n' + ",\n".join([one] * 2000) + "]}"
    assert len(text) > 15 << 20
    began = time.monotonic()
    assert found(text) == [f"ghcr.io/acme/app{n}:1" for n in range(3)]
    assert time.monotonic() - began < 6


def test_a_list_has_comments_and_empty_lines() -> None:
    lines = "# nodes\nalpine:3.22   # base\n\n  ghcr.io/acme/app:1.0\n#\n"
    assert read_list(lines.splitlines()) == ["alpine:3.22", "ghcr.io/acme/app:1.0"]
