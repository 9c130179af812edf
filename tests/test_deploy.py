"""deploy/ and the pages about it: valid by their schemas, safe, and naming what there is."""

from __future__ import annotations

import base64
import functools
import json
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from vit.cli import app as commands
from vit.cli.serve import KEY, named
from vit.serving import create_app

from .served import Client, checkpoint, picture

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SCHEMAS = Path(__file__).parent / "fixtures" / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KUBERNETES = "1.32"
FRAMEWORKS = ("pt", "tf", "flax")
DRAIN, GRACE = "--drain-seconds", 60
MANIFESTS = ("kubernetes.yaml", "kserve.yaml", "tensorflow-serving.yaml")
PREDICTOR = ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")  # KServe's, beside those of a Pod
PAGES = ("deploy_kubernetes.md", "deploy_tensorflow_serving.md", "deploy_vertex_ai.md")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = checkpoint(tmp_path_factory.mktemp("deployed") / "model")
    with Client(create_app({"vit": str(folder)}, "pt", vertex=("/health", "/predict"))) as found:
        yield found


def instructions(framework: str) -> list[tuple[str, str]]:
    """[(instruction, the rest of it)] of a Dockerfile."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / f"{framework}.Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def served(arguments: list[str]) -> dict[str, Any]:
    """What `vit serve` makes of arguments; what it does not know is an error."""
    command = typer.main.get_command(commands).commands["serve"]
    return command.make_context("serve", list(arguments)).params


def entry(framework: str = "pt") -> list[str]:
    """The arguments of `vit serve` that an image begins with."""
    found = json.loads(dict(instructions(framework))["ENTRYPOINT"])
    assert found[:2] == ["vit", "serve"]
    return found[2:]


@functools.cache
def default_port() -> int:
    (option,) = [each for each in typer.main.get_command(commands).commands["serve"].params if each.name == "port"]
    return int(re.search(r"\[default: (\d+)\]", option.help)[1])


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def pods() -> list[tuple[str, dict[str, Any]]]:
    """[(file, the Pod's spec)] of what the manifests run."""
    found = []
    for name in MANIFESTS:
        for document in documents(name):
            if document["kind"] == "Deployment":
                found.append((name, document["spec"]["template"]["spec"]))
            elif document["kind"] == "InferenceService":
                predictor = document["spec"]["predictor"]
                found.append((name, {key: value for key, value in predictor.items() if key not in PREDICTOR}))
    return found


# === Images ===


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_image_is_small_safe_and_starts_the_server(framework: str, client: Client) -> None:
    steps = instructions(framework)
    last = steps[max(i for i, (name, _) in enumerate(steps) if name == "FROM") :]
    names = [name for name, _ in last]
    for base in [rest.split()[0] for name, rest in steps if name == "FROM"]:
        assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base), base  # of one release
    assert len([name for name, _ in steps if name == "FROM"]) == 2
    assert f"Python :: {steps[0][1][7:11]}" in " ".join(PROJECT["classifiers"])
    assert not re.search("pip|apt", " ".join(rest for name, rest in last if name == "RUN"))
    user = dict(last)["USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # a number, as runAsNonRoot wants it
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    assert int(dict(last)["EXPOSE"]) == default_port()
    check = dict(last)["HEALTHCHECK"]
    (url,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", check)
    assert int(url[0]) == default_port()
    assert client.get(url[1]).status_code == 200
    compile(json.loads(check.partition("CMD ")[2])[2], "HEALTHCHECK", "exec")
    options = served(entry(framework))
    assert (options["host"], options["framework"], options["port"]) == ("0.0.0.0", [framework], None)
    (install,) = [rest for name, rest in steps if "--constraint constraints.txt" in rest]
    extras = set(re.search(r'\[([\w,]+)\]"$', install)[1].split(","))
    assert extras == {framework, "serve"} <= PROJECT["optional-dependencies"].keys()


def test_the_images_differ_in_nothing_but_the_framework() -> None:
    texts = []
    for framework, name in zip(FRAMEWORKS, ("PyTorch", "TensorFlow", "Flax"), strict=True):
        text = (DEPLOY / f"{framework}.Dockerfile").read_text()
        assert name in text.splitlines()[0]
        texts.append(re.sub(rf"{name}|\b{framework}\b", "X", text))
    assert texts[0] == texts[1] == texts[2]


def test_what_an_image_copies_is_all_that_the_wheel_is_built_from(tmp_path: Path) -> None:
    copies = [rest.split()[:-1] for name, rest in instructions("pt") if name == "COPY" and "--from" not in rest]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sorted(each for names in copies for each in names) == sorted(kept)
    source = tmp_path / "source"
    source.mkdir()
    for name in kept:
        (source / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "wheels")]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert {"vit/serving/page/index.html", "vit/serving/page/page.css", "vit/serving/page/page.js",
            "vit/demo/model.safetensors"} <= set(names)  # fmt: skip


def test_compose_file() -> None:
    (compose,) = documents("compose.yaml")
    jsonschema.validate(compose, json.loads((SCHEMAS / "compose.json").read_text()))
    service = compose["services"]["trivit"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    options = served(entry() + service["command"])
    assert str(options["api_key_file"]) == "/run/secrets/api-key"
    assert service["secrets"] == list(compose["secrets"]) == ["api-key"]
    assert [port.split(":")[-1] for port in service["ports"]] == [str(default_port())]
    assert service["user"] == dict(instructions("pt"))["USER"]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert int(service["stop_grace_period"].removesuffix("s")) >= options["drain_seconds"] + GRACE
    mounted = [volume.split(":")[1] for volume in service["volumes"]]
    assert re.search(r"HF_HOME=(\S+)", dict(instructions("pt"))["ENV"])[1] in mounted
    names = {volume.split(":")[0] for volume in service["volumes"]}
    assert {name for name in names if not name.startswith(".")} == set(compose["volumes"])


# === Manifests ===


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_valid_by_their_schemas(name: str) -> None:
    for document in documents(name):
        if document["kind"] == "InferenceService":
            jsonschema.validate(document, json.loads((SCHEMAS / "inferenceservice.json").read_text()))
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    for file, pod in pods():
        if file == name:
            about = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
            kubernetes_validate.validate(about, KUBERNETES, strict=True)


def test_the_schemas_refuse_what_is_misspelt() -> None:
    (compose,) = documents("compose.yaml")
    compose["services"]["trivit"]["readonly"] = True
    with pytest.raises(jsonschema.ValidationError, match="readonly"):
        jsonschema.validate(compose, json.loads((SCHEMAS / "compose.json").read_text()))
    deployment = documents("kubernetes.yaml")[0]
    deployment["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readyProbe"):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


@pytest.mark.parametrize(("name", "pod"), pods(), ids=MANIFESTS)
def test_pods_are_bounded_and_may_do_nothing_that_they_need_not(name: str, pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    outside = pod["securityContext"]
    assert f"{outside['runAsUser']}:{outside['runAsGroup']}" == dict(instructions("pt"))["USER"]
    assert outside["seccompProfile"] == {"type": "RuntimeDefault"}
    inside = container["securityContext"]
    assert (inside["allowPrivilegeEscalation"], inside["readOnlyRootFilesystem"]) == (False, True)
    assert inside["capabilities"] == {"drop": ["ALL"]}
    assert re.fullmatch(r"[\w./-]+:\d[\w.]*", container["image"])
    for part in ("requests", "limits"):
        assert container["resources"][part].keys() == {"cpu", "memory"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert {"readinessProbe", "livenessProbe"} <= container.keys()


@pytest.mark.parametrize(("name", "pod"), pods()[:2], ids=MANIFESTS[:2])
def test_pods_of_the_server_name_options_routes_and_ports_that_there_are(
    name: str, pod: dict[str, Any], client: Client
) -> None:
    (container,) = pod["containers"]
    assert re.search(r"/trivit-(\w+):", container["image"])[1] in FRAMEWORKS
    assert container["image"].rpartition(":")[2] == PROJECT["version"]
    options = served(entry() + container["args"])
    (port,) = container["ports"]
    assert port["containerPort"] == (options["port"] or default_port())
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        if kind in container:
            get = container[kind]["httpGet"]
            assert get["port"] in (port.get("name"), port["containerPort"])
            assert client.get(get["path"]).status_code == 200
            assert ("live" in get["path"]) == (kind == "livenessProbe")
    assert {each["name"] for each in container["env"]} <= {KEY, "OMP_NUM_THREADS", "STORAGE_URI"}
    assert DRAIN in container["args"]
    assert pod["terminationGracePeriodSeconds"] >= options["drain_seconds"] + GRACE
    assert list(named(options["model"])) == ["vit" if name == "kserve.yaml" else "vit-base-patch16-224"]


def test_services_and_the_autoscaler_lead_to_the_pods(client: Client) -> None:
    for name in MANIFESTS:
        found = {document["kind"]: document for document in documents(name)}
        if "Deployment" not in found:
            continue
        deployment, service = found["Deployment"], found["Service"]
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
        ports = {port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    found = {document["kind"]: document for document in documents("kubernetes.yaml")}
    scaler = found["HorizontalPodAutoscaler"]["spec"]
    deployment = found["Deployment"]
    kind = {key: deployment[key] for key in ("apiVersion", "kind")}
    assert scaler["scaleTargetRef"] == {**kind, "name": deployment["metadata"]["name"]}
    assert scaler["minReplicas"] == deployment["spec"]["replicas"] < scaler["maxReplicas"]
    (metric,) = [each["pods"] for each in scaler["metrics"]]
    assert re.search(rf"^{metric['metric']['name']} ", client.get("/metrics").text, re.MULTILINE)
    options = served(entry() + deployment["spec"]["template"]["spec"]["containers"][0]["args"])
    assert int(metric["target"]["averageValue"]) < options["max_queue"]
    scraped = deployment["spec"]["template"]["metadata"]["annotations"]
    assert client.get(scraped["prometheus.io/path"]).status_code == 200
    assert scraped["prometheus.io/port"] == str(default_port())
    assert found["PodDisruptionBudget"]["spec"]["selector"] == deployment["spec"]["selector"]


def test_tf_serving_serves_the_layout_that_an_export_has() -> None:
    (_, pod) = pods()[2]
    (container,) = pod["containers"]
    given = dict(argument.removeprefix("--").split("=") for argument in container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (int(given["port"]), int(given["rest_api_port"])) == (ports["grpc"], ports["http"])
    for kind in ("startupProbe", "readinessProbe"):
        assert container[kind]["httpGet"] == {"path": f"/v1/models/{given['model_name']}", "port": "http"}
    (mount,) = container["volumeMounts"]
    assert given["model_base_path"] == f"{mount['mountPath']}/{given['model_name']}"
    (exporter,) = re.findall(r"^tensorflow_cpu==(\d+\.\d+)\.", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    page = (ROOT / "docs" / "deploy_tensorflow_serving.md").read_text()
    images = re.findall(r"tensorflow/serving:(\d+\.\d+)\.\d+", container["image"] + page)
    assert images == [exporter, exporter]  # an older one may not know what a newer TensorFlow writes


# === Pages ===

REQUEST = re.compile(r'^(echo ".*") (?:\| curl -d @- .*https?://[^/\s]+(/\S+)|> request\.json)$', re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_requests_of_the_pages_are_answered(name: str, client: Client, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(picture(0, "jpeg"))
    encoded = base64.urlsafe_b64encode(picture(0, "jpeg")).decode().rstrip("=")
    text = (ROOT / "docs" / name).read_text()
    found = REQUEST.findall(text)
    assert len(found) == len(re.findall(r"^echo ", text, re.MULTILINE)) > 0
    for line, path in found:
        body = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, check=True).stdout
        assert encoded in body.decode().replace("+", "-").replace("/", "_")
        answer = client.post(path or "/predict", content=body)
        assert answer.status_code == 200, answer.text
        wanted = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
        assert set(answer.json()) in [set(each) for each in wanted]


@pytest.mark.parametrize("name", PAGES)
def test_pages_name_files_ports_and_options_that_there_are(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    for file in re.findall(r"\bdeploy/[\w.-]*\w", text):
        assert (ROOT / file).exists() or file == "deploy/api-key"
    for argument in re.findall(r"--build-arg (\w+)", text):  # one that is not declared would reach no instruction
        assert all(("ARG", argument) in instructions(framework) for framework in FRAMEWORKS)
    for line in re.findall(r"^docker run .*", text, re.MULTILINE):
        words = shlex.split(line)
        if any(word.startswith("trivit-") for word in words):
            at = next(i for i, word in enumerate(words) if word.startswith("trivit-"))
            served(entry() + words[at + 1 :])
    for options in re.findall(r"CMD (\[.*?\])", text):
        served(entry() + json.loads(options))
    (metric,) = documents("kubernetes.yaml")[2]["spec"]["metrics"]
    for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        (rule,) = yaml.safe_load(block)["rules"]
        assert rule["seriesQuery"].startswith(f"{metric['pods']['metric']['name']}{{")
