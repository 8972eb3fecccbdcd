"""The files of deploy/, read: what they start, and with which words."""

import configparser
import copy
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
KUBERNETES = DEPLOY / "kubernetes"
KUBERNETES_CUDA = DEPLOY / "kubernetes-cuda" / "kustomization.yaml"
UNIT = DEPLOY / "systemd" / "fcnseg.service"
ENVIRONMENT = DEPLOY / "systemd" / "fcnseg.env"

DESCRIPTOR = ROOT / "tests" / "contract" / "segmentation_v1.binpb"
"""What `buf build` made of proto/."""

ENVOY = ["envoy", "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]
"""How tests start Envoy; several run on a machine."""


@cache
def read(path: Path) -> Any:
    """Return a YAML file's one document."""
    return yaml.safe_load(path.read_text())


def uncommented(path: Path) -> str:
    """Return a YAML file's text with the YAML in its comments taken in."""
    return re.sub(r'^( *)# ( *(?:- .*|"?[\w@./-]+"?:(?: .*)?))$', r"\1\2", path.read_text(), flags=re.MULTILINE)


def compose() -> dict[str, Any]:
    services: dict[str, Any] = read(DEPLOY / "compose.yaml")["services"]
    return services


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = read(KUBERNETES / "deployment.yaml")["spec"]["template"]["spec"]
    return spec


def patched(name: str, overlay: str) -> dict[str, Any]:
    """Return a manifest of Kubernetes as the text of an overlay changes it.

    Raises:
        KeyError: The overlay names a place that is not there.
        AssertionError: It expects another value there, or does what is not done here.
    """
    manifest: dict[str, Any] = copy.deepcopy(read(KUBERNETES / f"{name}.yaml"))
    target = {"kind": manifest["kind"], "name": manifest["metadata"]["name"]}
    for patch in yaml.safe_load(overlay)["patches"]:
        if patch["target"] == target:
            for change in yaml.safe_load(patch["patch"]):
                _change(manifest, **change)
    return manifest


def _change(manifest: dict[str, Any], op: str, path: str, value: Any) -> None:
    """Do one operation of JSON Patch (RFC 6902) as kustomize does."""
    *way, last = [word.replace("~1", "/") for word in path.split("/")[1:]]
    place: Any = manifest
    for word in way:
        place = place[int(word)] if isinstance(place, list) else place[word]
    key = int(last) if isinstance(place, list) and last != "-" else last
    if op == "add" and last == "-":
        place.append(value)
        return
    if op != "add":
        old = place[key]
        assert op == "replace" or (op == "test" and old == value), (path, old, value)
    place[key] = value


def pod_on_gpu() -> dict[str, Any]:
    deployment = patched("deployment", KUBERNETES_CUDA.read_text())
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def runtime() -> dict[str, Any]:
    """What a ServingRuntime says of its pods."""
    spec: dict[str, Any] = read(DEPLOY / "kserve" / "servingruntime.yaml")["spec"]
    return spec


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, each with what follows it on one line."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    return [(name, rest) for name, rest in pairs]


def following(instruction: str) -> list[str]:
    return [rest for name, rest in instructions() if name == instruction]


def locked(device: str) -> dict[str, str]:
    """Return the versions of the packages that the image for a device installs, each of which has hashes."""
    text = (DOCKERFILE.parent / f"requirements-{device}.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)==([\w.]+) \\\n    --hash=sha256:", text, flags=re.MULTILINE))


def targets() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage of the Dockerfile, those of the stages it builds on included."""
    stages: dict[str, list[tuple[str, str]]] = {}
    stage: list[tuple[str, str]] = []
    for name, rest in instructions():
        if name == "FROM":
            base, _, own = rest.partition(" AS ")
            stage = stages[own] = list(stages.get(base, []))
        stage.append((name, rest))
    return stages


def healthcheck() -> list[str]:
    (line,) = following("HEALTHCHECK")
    words: list[str] = json.loads(line[line.index("CMD") + 3 :])
    return words


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign] # systemd's keys have capitals
    parser.read_string(UNIT.read_text().replace("\\\n", ""))
    return parser


def environment() -> dict[str, str]:
    lines = [line for line in ENVIRONMENT.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def command_lines() -> dict[str, list[str]]:
    """Return what is run, by where it is said."""
    (entrypoint,), (default,) = map(following, ("ENTRYPOINT", "CMD"))
    image: list[str] = json.loads(entrypoint)
    started = unit()["Service"]["ExecStart"].replace("%d", "/run/credentials")
    for name, value in environment().items():
        started = started.replace(f"${name}", value)
    return {
        "Dockerfile": image + json.loads(default),
        "compose": image + compose()["fcnseg"]["command"],
        "compose, CUDA": image + read(DEPLOY / "compose.cuda.yaml")["services"]["fcnseg"]["command"],
        "Kubernetes": image + pod()["containers"][0]["args"],
        "Kubernetes, CUDA": image + pod_on_gpu()["containers"][0]["args"],
        "KServe": image + runtime()["containers"][0]["args"],
        "systemd": ["fcnseg", *shlex.split(started)[1:]],
    }


def seconds_to_stop() -> dict[str, float]:
    """Return after how many seconds the process is killed, by where it is said."""
    predictor = read(DEPLOY / "kserve" / "inferenceservice.yaml")["spec"]["predictor"]
    return {
        "compose": float(compose()["fcnseg"]["stop_grace_period"].removesuffix("s")),
        "Kubernetes": pod()["terminationGracePeriodSeconds"],
        "KServe": predictor.get("terminationGracePeriodSeconds", 30),  # Kubernetes' default
        "systemd": float(unit()["Service"]["TimeoutStopSec"]),
    }


def probes() -> Iterator[dict[str, Any]]:
    """Yield the probes that Kubernetes makes over HTTP."""
    container = pod()["containers"][0]
    yield from (container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness"))
