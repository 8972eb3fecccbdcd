"""Image, compose, Kubernetes, KServe and systemd start the program that there is, as it is meant to be run."""

import copy
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from packaging.requirements import Requirement

from serving.command import serve
from serving.server import ServerConfig
from tests import deploy_files as files
from tests.debian import needs, output_of
from tests.deploy_files import DEPLOY, KUBERNETES, ROOT
from tests.running_server import RunningServer, running_server

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
IMAGE = {"sys_platform": "linux", "platform_machine": "x86_64"}
GRPC_PORT, HTTP_PORT = 50051, 8080
CUDA = files.KUBERNETES_CUDA.read_text()
KUBECTL_VERSION = ["kubectl", "version", "--client", "--output=json"]
PLACES = sorted(files.command_lines())


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    with running_server(tiny_model, ServerConfig(http_port=0)) as running:
        yield running


def parsed(place: str) -> dict[str, Any]:
    """Return the options as the program's own parser takes them."""
    program, command, *words = files.command_lines()[place]
    assert (program, command) == ("fcnseg", "serve")
    return serve.make_context("serve", words).params


def manifest(name: str) -> Any:
    return files.read(KUBERNETES / f"{name}.yaml")


@pytest.mark.parametrize("path", [p for p in DEPLOY.rglob("*") if p.suffix in {".yml", ".yaml"}], ids=lambda p: p.name)
def test_yaml_is_read(path: Path) -> None:
    assert all(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("place", PLACES)
def test_the_program_takes_the_command_line(place: str) -> None:
    options = parsed(place)
    assert (options["host"], options["port"], options["http_port"]) == ("0.0.0.0", GRPC_PORT, HTTP_PORT)  # noqa: S104
    assert all(model.is_absolute() for model in options["models"])


def test_a_word_that_the_program_does_not_know_is_not_taken() -> None:
    with pytest.raises(click.UsageError):
        serve.make_context("serve", ["/models", "--no-such-option"])


@pytest.mark.parametrize("place", sorted(files.seconds_to_stop()))
def test_requests_under_way_are_finished_before_the_process_is_killed(place: str) -> None:
    options = parsed(place)
    assert files.seconds_to_stop()[place] > options["drain_delay_s"] + options["grace_s"]


def test_clients_connect_anew_in_time_to_find_new_pods() -> None:
    options = parsed("Kubernetes")
    assert options["drain_delay_s"] > 0
    assert 0 < options["max_age_grace_s"] < options["max_age_s"]


@pytest.mark.parametrize("place", ["Kubernetes", "systemd"])
def test_a_server_that_others_reach_asks_who_they_are(place: str) -> None:
    options = parsed(place)
    assert all(options[name] is not None for name in ("tls_cert", "tls_key", "tokens"))


# The image


def test_every_target_of_the_image_runs_as_a_user_that_is_not_root() -> None:
    for target in ("cpu", "cuda"):
        *_, user = (rest for name, rest in files.targets()[target] if name == "USER")
        uid, _, gid = user.partition(":")
        assert int(uid) > 0
        assert int(gid) > 0
    assert list(files.targets())[-1] == "cpu"


def test_stages_are_there_before_they_are_used() -> None:
    seen: list[str] = []
    for name, rest in files.instructions():
        if name == "FROM":
            base, _, own = rest.partition(" AS ")
            assert base in seen or base == "python:${PYTHON}"
            seen.append(own)
        for source in re.findall(r"--from=(\S+)", rest):
            assert source in seen[:-1]
    for service in (files.compose(), files.read(DEPLOY / "compose.cuda.yaml")["services"]):
        assert service["fcnseg"]["build"]["target"] in seen


def test_images_of_others_are_of_one_version() -> None:
    named = [service["image"] for service in files.compose().values() if "build" not in service]
    named += [default.replace("PYTHON=", "python:") for default in files.following("ARG")]
    assert len(named) == 3
    for image in named:
        assert re.search(r":v?\d+\.\d+\.\d+(-[\w-]+)?$", image), image


def test_the_image_is_built_of_all_that_the_wheel_needs_and_of_nothing_else() -> None:
    copied = {word for rest in files.following("COPY") if "--from" not in rest for word in rest.split()[:-1]}
    wanted = {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    wanted |= {f"deploy/docker/requirements-{device}.txt" for device in ("cpu", "cuda")}
    assert copied == wanted | set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert all((ROOT / name).exists() for name in copied)
    ignored = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert "*" in ignored


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_pip_installs_into_the_image_is_what_the_project_names(device: str) -> None:
    installed = [rest for name, rest in files.targets()[f"environment-{device}"] if name in {"COPY", "RUN"}]
    assert any(rest.endswith(f"pip install --require-hashes -r requirements-{device}.txt") for rest in installed)
    (python,) = re.findall(r"PYTHON=(\d+\.\d+)\.", " ".join(files.following("ARG")))
    assert f"Programming Language :: Python :: {python}" in PROJECT["project"]["classifiers"]
    assert f"--python-version {python}" in (ROOT / "Makefile").read_text()
    wanted = [
        requirement
        for text in (*PROJECT["project"]["dependencies"], *EXTRAS["serve"], *EXTRAS["tracing"])
        if (requirement := Requirement(text)).name != "fcnseg"
        and (requirement.marker is None or requirement.marker.evaluate(IMAGE | {"python_version": python}))
    ]
    locked = files.locked(device)
    for requirement in wanted:
        name = requirement.name if device == "cuda" else requirement.name.removesuffix("-gpu")
        assert requirement.specifier.contains(locked[name]), name
    assert {name for name in locked if name.startswith("onnxruntime")} == {
        "onnxruntime-gpu" if device == "cuda" else "onnxruntime"
    }
    assert any(name.startswith("nvidia-cudnn") for name in locked) == (device == "cuda")


def test_the_image_says_when_it_is_well(server: RunningServer) -> None:
    _, *words = files.healthcheck()
    there = f"127.0.0.1:{HTTP_PORT}"
    assert there in words[-1]

    def check(old: str, new: str) -> int:
        command = [sys.executable, *words[:-1], words[-1].replace(old, new)]
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode

    assert check(there, str(server.http_address)) == 0
    assert check(f"{there}/readyz", f"{server.http_address}/elsewhere") != 0


# Ports and paths


def test_ports_agree() -> None:
    both = {"grpc": GRPC_PORT, "http": HTTP_PORT}
    assert files.following("EXPOSE") == [f"{GRPC_PORT} {HTTP_PORT}"]
    assert files.compose()["fcnseg"]["ports"] == [f"127.0.0.1:{GRPC_PORT}:{GRPC_PORT}"]
    ports = files.pod()["containers"][0]["ports"]
    assert {port["name"]: port["containerPort"] for port in ports} == both
    service = manifest("service")["spec"]["ports"]
    assert {port["targetPort"]: port["port"] for port in service} == both
    rules = manifest("network-policy")["spec"]["ingress"]
    assert [port["port"] for rule in rules for port in rule["ports"]] == [GRPC_PORT, HTTP_PORT]
    assert files.runtime()["annotations"]["prometheus.kserve.io/port"] == str(HTTP_PORT)
    container = files.runtime()["containers"][0]
    assert [port["containerPort"] for port in container["ports"]] == [GRPC_PORT]
    probes = [container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")]
    assert [probe["grpc"] for probe in probes] == [{"port": GRPC_PORT}] * 3


def test_paths_that_are_probed_and_scraped_are_answered(server: RunningServer) -> None:
    (endpoint,) = manifest("service-monitor")["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in manifest("service")["spec"]["ports"]}
    paths = {probe["path"] for probe in files.probes()}
    assert paths == {"/healthz", "/readyz"}
    assert {probe["port"] for probe in files.probes()} == {"http"}
    for path in (*paths, endpoint["path"], files.runtime()["annotations"]["prometheus.kserve.io/path"]):
        with urllib.request.urlopen(f"http://{server.http_address}{path}", timeout=10) as answer:
            assert answer.status == 200


# compose


def test_what_compose_mounts_is_where_it_is_looked_for() -> None:
    services = files.compose()
    mounts = [mount for service in services.values() for mount in service["volumes"]]
    folders = [mount.split(":") for mount in mounts if mount.startswith("./")]
    assert len(folders) == 4
    assert all((DEPLOY / source).exists() for source, _, _ in folders)
    inside = {target for _, target, _ in folders}
    prometheus = files.read(DEPLOY / "prometheus" / "prometheus.yml")
    assert {f"/etc/prometheus/{name}" for name in prometheus["rule_files"]} <= inside
    (provider,) = files.read(DEPLOY / "grafana" / "provisioning" / "dashboards" / "fcnseg.yml")["providers"]
    assert f"{provider['options']['path']}/fcnseg.json" in inside
    (models,) = parsed("compose")["models"]
    assert services["fcnseg"]["volumes"][0].endswith(f":{models}:ro")


def test_the_services_of_compose_find_each_other() -> None:
    services = files.compose()
    (job,) = files.read(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"fcnseg:{HTTP_PORT}"]
    (source,) = files.read(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert set(services) == {"fcnseg", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service["ports"])


# Kubernetes


def test_the_kustomization_names_every_manifest() -> None:
    there = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml", "prometheus-adapter.yaml"}
    kustomization = manifest("kustomization")
    assert set(kustomization["resources"]) == there
    assert kustomization["namespace"] == manifest("namespace")["metadata"]["name"]
    assert [image["name"] for image in kustomization["images"]] == [files.pod()["containers"][0]["image"]]


def test_manifests_select_the_pods() -> None:
    labels = manifest("deployment")["spec"]["template"]["metadata"]["labels"]
    assert manifest("deployment")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("service")["spec"]["selector"] == labels
    assert manifest("disruption-budget")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("network-policy")["spec"]["podSelector"]["matchLabels"] == labels
    assert files.pod()["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"] == labels
    assert manifest("service-monitor")["spec"]["selector"]["matchLabels"] == manifest("service")["metadata"]["labels"]
    scaled = manifest("autoscaler")["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", manifest("deployment")["metadata"]["name"])
    assert "replicas" not in manifest("deployment")["spec"]
    assert manifest("autoscaler")["spec"]["minReplicas"] > manifest("disruption-budget")["spec"]["maxUnavailable"]


def leaves(manifest: Any, path: str = "") -> dict[str, Any]:
    """Return what stands at each path of a manifest."""
    if not isinstance(manifest, dict | list):
        return {path: manifest}
    pairs = manifest.items() if isinstance(manifest, dict) else enumerate(manifest)
    return {place: leaf for key, value in pairs for place, leaf in leaves(value, f"{path}/{key}").items()}


def test_the_overlay_for_gpus_changes_what_it_must_and_nothing_else() -> None:
    changed = {}
    for name in ("deployment", "autoscaler"):
        before, after = leaves(manifest(name)), leaves(files.patched(name, CUDA))
        assert before.keys() <= after.keys()
        changed |= {path: (before.get(path), new) for path, new in after.items() if new != before.get(path)}
    container, rollout = "/spec/template/spec/containers/0", "/spec/strategy/rollingUpdate"
    memory = ("4Gi", changed[f"{container}/resources/limits/memory"][1])
    assert changed.pop(f"{container}/args/{len(files.pod()['containers'][0]['args'])}") == (None, "--device=cuda")
    assert changed == {
        f"{container}/args/5": ("--threads=2", "--threads=4"),
        f"{container}/resources/limits/nvidia.com/gpu": (None, 1),
        f"{container}/resources/limits/memory": memory,
        f"{container}/resources/requests/memory": memory,
        f"{container}/resources/requests/cpu": ("2", "4"),
        f"{container}/startupProbe/failureThreshold": (60, 120),
        f"{rollout}/maxSurge": (1, 0),
        f"{rollout}/maxUnavailable": (0, 1),
        "/spec/metrics/0/pods/target/averageValue": ("4", "16"),
    }
    (max_queue,) = (option.default for option in serve.params if option.name == "max_queue")
    assert int(changed["/spec/metrics/0/pods/target/averageValue"][1]) < max_queue


def test_the_overlay_for_gpus_takes_the_image_for_them() -> None:
    (plain,), (image,) = manifest("kustomization")["images"], files.read(files.KUBERNETES_CUDA)["images"]
    assert image["name"] == plain["newName"]
    assert image["newTag"] == parsed("Kubernetes, CUDA")["device"] == "cuda"
    assert {plain["newTag"], image["newTag"]} <= set(files.targets())


def test_an_overlay_that_no_longer_fits_is_not_taken() -> None:
    with pytest.raises(AssertionError, match="--threads=3"):
        files.patched("deployment", CUDA.replace("--threads=2", "--threads=3"))
    with pytest.raises(KeyError):
        files.patched("deployment", CUDA.replace("startupProbe", "startUpProbe"))


def test_the_nodes_that_the_overlay_may_choose() -> None:
    chosen = files.patched("deployment", files.uncommented(files.KUBERNETES_CUDA))["spec"]["template"]["spec"]
    assert chosen["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert [toleration["key"] for toleration in chosen["tolerations"]] == ["nvidia.com/gpu"]


@pytest.mark.parametrize("folder", [KUBERNETES, files.KUBERNETES_CUDA.parent], ids=lambda folder: folder.name)
def test_kubectl_makes_the_same_of_the_overlay(folder: Path) -> None:
    if shutil.which("kubectl") is None or "kustomizeVersion" not in output_of(KUBECTL_VERSION):
        pytest.skip("needs kubectl 1.24 or later")
    made = {item["kind"]: item for item in yaml.safe_load_all(output_of(["kubectl", "kustomize", str(folder)]))}
    kustomization = manifest("kustomization")
    (image,) = files.read(folder / "kustomization.yaml")["images"]
    names = [Path(name).stem for name in kustomization["resources"]]
    assert len(made) == len(names)
    for name in names:
        wanted = files.patched(name, CUDA) if folder != KUBERNETES else copy.deepcopy(manifest(name))
        if wanted["kind"] == "Namespace":
            assert wanted["metadata"]["name"] == kustomization["namespace"]
        else:
            wanted["metadata"]["namespace"] = kustomization["namespace"]
        if wanted["kind"] == "Deployment":
            (container,) = wanted["spec"]["template"]["spec"]["containers"]
            container["image"] = f"{kustomization['images'][0]['newName']}:{image['newTag']}"
        assert made[wanted["kind"]] == wanted


@pytest.mark.parametrize(
    "spec", [files.pod(), files.pod_on_gpu(), files.runtime()], ids=["Kubernetes", "Kubernetes, CUDA", "KServe"]
)
def test_pods_are_given_nothing_that_they_do_not_need(spec: dict[str, Any]) -> None:
    (container,) = spec["containers"]
    own = spec.get("securityContext", {}) | container["securityContext"]
    assert own["runAsNonRoot"]
    assert f"{own['runAsUser']}:{own['runAsUser']}" in files.following("USER")
    assert own["readOnlyRootFilesystem"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["seccompProfile"] == {"type": "RuntimeDefault"}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in spec["volumes"]}
    assert all(mount.get("readOnly") for name, mount in mounts.items() if name != "tmp")
    assert mounts["tmp"]["mountPath"] == "/tmp"  # noqa: S108


def test_pods_get_no_token_of_the_cluster() -> None:
    predictor = files.read(DEPLOY / "kserve" / "inferenceservice.yaml")["spec"]["predictor"]
    for spec in (files.pod(), files.pod_on_gpu(), predictor):
        assert spec["automountServiceAccountToken"] is False


def test_what_the_network_policy_may_let_through_beside() -> None:
    """Its comments are rules, at the places that they stand for."""
    spec = yaml.safe_load(files.uncommented(KUBERNETES / "network-policy.yaml"))["spec"]
    as_it_is = manifest("network-policy")["spec"]
    dns, collector = spec["egress"]
    assert {(port["port"], port["protocol"]) for port in dns["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert {*dns["to"][0]} == {"namespaceSelector", "podSelector"}
    assert collector["ports"] == [{"port": 4317}]
    clients, gateway = spec["ingress"][0]["from"]
    assert as_it_is["ingress"][0]["from"] == [clients]
    assert {*gateway} == {"namespaceSelector"}
    assert as_it_is["ingress"][1:] == spec["ingress"][1:]
    assert "egress" not in as_it_is
    assert as_it_is["policyTypes"] == spec["policyTypes"] == ["Ingress", "Egress"]


def test_what_the_pod_reads_is_mounted() -> None:
    options = parsed("Kubernetes")
    mounts = [mount["mountPath"] for mount in files.pod()["containers"][0]["volumeMounts"]]
    for path in (*options["models"], *(options[name] for name in ("tls_cert", "tls_key", "tokens"))):
        assert any(path.is_relative_to(mount) for mount in mounts), path


@pytest.mark.parametrize(
    ("place", "spec"),
    [("Kubernetes", files.pod()), ("Kubernetes, CUDA", files.pod_on_gpu()), ("KServe", files.runtime())],
)
def test_a_pod_computes_on_the_cpus_that_it_asks_for(place: str, spec: dict[str, Any]) -> None:
    resources = spec["containers"][0]["resources"]
    assert int(resources["requests"]["cpu"]) == parsed(place)["threads"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]


# KServe


def test_a_pod_that_ends_is_not_restarted_for_want_of_health() -> None:
    """From SIGTERM on health is NOT_SERVING, which is what the liveness probe asks for."""
    probe = files.runtime()["containers"][0]["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > files.seconds_to_stop()["KServe"]


def test_the_example_service_finds_the_runtime() -> None:
    service = files.read(DEPLOY / "kserve" / "inferenceservice.yaml")["spec"]["predictor"]["model"]
    runtime = files.read(DEPLOY / "kserve" / "servingruntime.yaml")
    assert service["runtime"] == runtime["metadata"]["name"]
    assert [service["modelFormat"]["name"]] == [known["name"] for known in runtime["spec"]["supportedModelFormats"]]
    assert [service["protocolVersion"]] == runtime["spec"]["protocolVersions"] == ["grpc-v2"]
    assert runtime["spec"]["containers"][0]["name"] == "kserve-container"
    assert [str(path) for path in parsed("KServe")["models"]] == ["/mnt/models"]


# systemd


def test_the_unit_hands_over_the_files_that_it_names() -> None:
    loaded = dict(re.findall(r"^LoadCredential=(\S+?):(\S+)$", files.UNIT.read_text(), re.MULTILINE))
    named = re.findall(r"%d/(\S+)", files.unit()["Service"]["ExecStart"])
    assert sorted(loaded) == sorted(named)
    assert set(re.findall(r"\$(\w+)", files.unit()["Service"]["ExecStart"])) == set(files.environment())
    assert files.unit()["Service"]["EnvironmentFile"] == f"/etc/fcnseg/{files.ENVIRONMENT.name}"


def test_the_unit_is_closed() -> None:
    service = files.unit()["Service"]
    closed = ("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictSUIDSGID", "RestrictNamespaces")
    assert all(service[key] == "yes" for key in closed)
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    # Half of it is what images may take by default; the models come on top.
    assert 50 < int(service["MemoryMax"].removesuffix("%")) < 100


def test_the_unit_starts_again_what_failed_for_minutes_and_then_gives_up() -> None:
    service, limit = files.unit()["Service"], files.unit()["Unit"]
    assert (service["Restart"], service["KillSignal"]) == ("on-failure", "SIGTERM")
    assert "RestartPreventExitStatus" not in service
    interval_s = 60 * int(limit["StartLimitIntervalSec"].removesuffix("min"))
    starts, pause_s = int(limit["StartLimitBurst"]), int(service["RestartSec"])
    assert starts * pause_s >= 300
    # Else the limit would never be reached: a start that fails takes a few seconds itself.
    assert starts * (pause_s + 10) < interval_s


@needs("systemd-analyze", "systemd")
def test_systemd_takes_the_unit_without_a_warning(tmp_path: Path) -> None:
    unit = tmp_path / files.UNIT.name
    text = files.UNIT.read_text()
    (program,) = re.findall(r"^ExecStart=(\S+)", text, re.MULTILINE)
    commented = "# RequiresMountsFor="
    assert commented in text
    unit.write_text(text.replace(program, sys.executable).replace(commented, commented[2:]))
    assert output_of(["systemd-analyze", "verify", str(unit)]) == ""


def test_the_disk_that_the_unit_may_wait_for_has_the_models() -> None:
    (mount,) = re.findall(r"^# RequiresMountsFor=(\S+)$", files.UNIT.read_text(), re.MULTILINE)
    assert [str(path) for path in parsed("systemd")["models"]] == [mount]
