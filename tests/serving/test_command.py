import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import fcnseg
from fcnseg import masks
from fcnseg.client import Client
from fcnseg.masks import Encoding
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from tests.server_process import free_port
from tests.serving.test_side_server import answers
from tests.tiny_model import write_tiny_model
from tests.untimed import untimed
from tests.waiting import wait_until

BLUE = pb.SegmentRequest(raw=pb.RawImage(height=4, width=6, rgb=bytes([0, 0, 255]) * 24))
RUN = [sys.executable, "-c", "from fcnseg.cli import main; main()"]


@contextmanager
def serving(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([*RUN, "serve", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def fail(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, "serve", *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_a_signal_and_exits_with_0(tmp_path: Path, number: signal.Signals) -> None:
    path = write_tiny_model(tmp_path / "cat.onnx")
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    offline = fcnseg.load(path, "cpu", threads=1)
    with serving(str(path), "--port", "0", "--device", "cpu", "--threads", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "serving cat (version 1, heatmap of tiny, 3 classes) on cpu\n"
        listening = re.fullmatch(r"listening on (127\.0\.0\.1:\d+)\n", process.stdout.readline())
        assert listening is not None
        with Client(listening[1]) as client:
            answer = client.segment(image)
            process.send_signal(number)
            assert process.wait(60) == 0
        assert process.stdout.read() == ""
        assert process.stderr is not None
        request, stopping = map(untimed, process.stderr.read().splitlines())
        assert request.startswith(
            "INFO serving.calls: call ended method=fcnseg.v1.SegmentationService/Segment code=OK model=cat/1 "
        )
        assert stopping == "INFO serving.server: stopping: requests under way have 30 s"
    assert answer.data == masks.encode(offline.segment(image).class_map, Encoding.PNG, offline.info.label_map)


reads_load = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads another process's load from /proc")


@reads_load
def test_request_under_way_is_answered_after_sigterm(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "slow.onnx", work_rounds=4000)
    with serving(str(path), "--port", "0", "--device", "cpu", "--threads", "1", "--grace", "600") as process:
        assert process.stdout is not None
        process.stdout.readline()
        address = process.stdout.readline().split()[-1]
        request = [*RUN, "request", address, str(write_png(tmp_path)), "-o", str(tmp_path / "mask.png")]
        with Client(address) as client:
            client.wait_until_ready(60)
        with subprocess.Popen(request, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
            wait_until_busy(process.pid)
            process.send_signal(signal.SIGTERM)
            _, errors = asking.communicate(timeout=120)
        assert (asking.returncode, errors) == (0, "")
        assert process.wait(60) == 0
        assert process.stderr is not None
        log = process.stderr.read()
        assert log.index("stopping:") < log.index("/Segment code=OK"), "the request was not under way"
    assert masks.read_ids(tmp_path / "mask.png").tolist() == [[2] * 6] * 4


@reads_load
def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "slow.onnx", work_rounds=2000)
    with serving(str(path), "--port", "0", "--device", "cpu", "--threads", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        with grpc.insecure_channel(process.stdout.readline().split()[-1]) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            segment = SegmentationServiceStub(channel).Segment
            answers = [segment.future(BLUE, timeout=60) for _ in range(20)]  # seconds of work, within the grace
            wait_until_busy(process.pid)
            process.send_signal(signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == -signal.SIGTERM
            assert answers[-1].code() is grpc.StatusCode.UNAVAILABLE


def write_png(folder: Path) -> Path:
    path = folder / "blue.png"
    cv2.imwrite(str(path), np.full((4, 6, 3), (255, 0, 0), np.uint8))
    return path


def wait_until_busy(pid: int) -> None:
    """Return when the process has computed for a while, which only an inference does."""
    idle_s = cpu_seconds(pid)
    wait_until(lambda: cpu_seconds(pid) >= idle_s + 0.1, tell=lambda: "the inference did not begin")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_closed_standard_streams_are_done_without(tiny_model: Path, processes: str) -> None:
    http_port = free_port()
    options = ("--port", "0", "--http-port", str(http_port), "--device", "cpu", "--processes", processes)
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *RUN, "serve", str(tiny_model), *options]
    with subprocess.Popen(closed) as process:
        try:
            wait_until(lambda: answers(f"127.0.0.1:{http_port}", "/readyz", 200))
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_port_in_use_is_one_line_and_exit_code_2(tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = fail(str(tiny_model), "--port", str(port), "--device", "cpu")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"fcnseg: error: port {port} of 127.0.0.1 is in use; choose another with --port, or a free one with --port 0\n"
    )


def test_http_port_in_use_is_one_line_and_exit_code_2(tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = fail(str(tiny_model), "--port", "0", "--http-port", str(port), "--device", "cpu")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"fcnseg: error: port {port} of 127.0.0.1 is in use; choose another with --http-port,"
        " or a free one with --http-port 0\n"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--grace", "1e9"), "--grace is 1e+09 s; it must be from 0 to 86400"),
        (("--drain-delay", "1e9"), "--drain-delay is 1e+09 s; it must be from 0 to 86400"),
        (("--watch", "1e9"), "--watch is 1e+09 s; it must be from 0 to 86400"),
        (("--keepalive", "1e9"), "--keepalive is 1e+09; it must be from 1 to 2073600"),
        (("--threads", "1025"), "Invalid value for '--threads': 1025 is not in the range 0<=x<=1024"),
        (("--max-queue", "9" * 20), "Invalid value for '--max-queue': 99999999999999999999 is not in the range 1<=x<="),
        (
            ("--max-image-pixels", "9" * 20),
            "Invalid value for '--max-image-pixels': 99999999999999999999 is not in the",
        ),
        (("--max-image-side", "9" * 20), "Invalid value for '--max-image-side': 99999999999999999999 is not in"),
        (("--max-image-bytes", "9" * 20), "Invalid value for '--max-image-bytes': 99999999999999999999 is more bytes"),
        (("--max-memory", "2"), "Invalid value for '--max-memory': 2 is too few bytes; give at least 1048576;"),
        (("--max-memory", "9EiB"), "Invalid value for '--max-memory': 9EiB is more bytes than there are; give at most"),
        (
            ("--max-connection-age-grace", "5"),
            "--max-connection-age-grace is 5 and connections may be of any age; give --max-connection-age too,",
        ),
        (("--http-port", "TAKEN"), "port TAKEN of 127.0.0.1 is in use; choose another with --http-port"),
        (("--port", "TAKEN"), "port TAKEN of 127.0.0.1 is in use; choose another with --port"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_opened(
    tmp_path: Path, options: tuple[str, str], words: str
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        values = [option.replace("TAKEN", port) for option in options]
        result = fail(str(broken), "--port", "0", "--device", "cpu", *values)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"fcnseg: error: {words.replace('TAKEN', port)}")
    assert result.stderr.count("\n") == 1


def test_log_is_json_and_probes_are_answered_where_the_command_line_says_so(tiny_model: Path) -> None:
    options = ("--port", "0", "--device", "cpu", "--threads", "1", "--http-port", "0", "--log-format", "json")
    with serving(str(tiny_model), *options) as process:
        assert process.stdout is not None
        process.stdout.readline()
        probes = re.fullmatch(r"probes and metrics at (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
        assert probes is not None
        with urllib.request.urlopen(f"{probes[1]}/readyz", timeout=10) as answer:
            assert answer.status == 200
        with Client(process.stdout.readline().split()[-1]) as client:
            client.segment(np.zeros((6, 8, 3), np.uint8))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        request, stopping = map(json.loads, process.stderr.read().splitlines())
    assert (request["code"], request["model"], request["height"], request["width"]) == ("OK", "tiny/1", 6, 8)
    assert (stopping["level"], stopping["logger"], "request_id" in stopping) == ("INFO", "serving.server", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "{folder}/none.onnx --device cpu",
            "model file {folder}/none.onnx does not exist; make one with 'fcnseg heatmap' or 'fcnseg export'",
        ),
        ("{model} --device cpu --tls-cert cert.pem", "TLS needs a certificate and its key; give --tls-key FILE too"),
        (
            "{model} --device cpu --port {taken}",
            "port {taken} of 127.0.0.1 is in use; choose another with --port, or a free one with --port 0",
        ),
    ],
)
def test_an_error_at_the_start_is_a_line_of_the_log(
    tiny_model: Path, tmp_path: Path, options: str, message: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = {"model": tiny_model, "folder": tmp_path, "taken": taken.getsockname()[1]}
        plain = fail(*options.format(**words).split())
        told = fail(*options.format(**words).split(), "--log-format", "json")
    assert (plain.returncode, plain.stdout) == (told.returncode, told.stdout) == (2, "")
    assert plain.stderr == f"fcnseg: error: {message.format(**words)}\n"
    (line,) = map(json.loads, told.stderr.splitlines())
    assert sorted(line) == ["level", "logger", "message", "time"]
    assert (line["level"], line["message"]) == ("ERROR", message.format(**words))


def test_a_warning_at_the_start_is_a_line_of_the_log(tmp_path: Path) -> None:
    done = fail(str(tmp_path / "none.onnx"), "--device", "cpu", "--host", "0.0.0.0", "--log-format", "json")  # noqa: S104
    warning, error = map(json.loads, done.stderr.splitlines())
    assert (warning["level"], error["level"]) == ("WARNING", "ERROR")
    assert warning["message"].startswith("listening on 0.0.0.0 without TLS (--tls-cert, --tls-key): ")


def test_what_is_not_installed_is_told_in_a_line_of_the_log(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['uvloop'] = None\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [*RUN, "serve", str(tiny_model), "--log-format", "json", "--debug"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (done.returncode, line["level"]) == (2, "ERROR")
    assert line["message"].endswith("needs the package 'uvloop', which is not installed: pip install 'fcnseg[serve]'")
    assert line["exception"].startswith("Traceback")


def test_file_that_is_no_model_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "rubbish.onnx"
    path.write_bytes(b"rubbish")
    result = fail(str(path), "--port", "0", "--device", "cpu")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"fcnseg: error: {path} is not an ONNX file")
    assert result.stderr.count("\n") == 1


def test_what_is_given_on_the_command_line_is_told_to_clients(tiny_model: Path) -> None:
    options = (
        "--port 0 --device cpu --threads 1 --spinning --no-arena --warm 8x12 --warm 40x48 --max-batch 3 --runners 2"
    )
    options += " --max-delay-ms 2.5 --max-queue 9 --max-memory 300000000"
    options += " --max-image-bytes 1234 --max-image-pixels 5678 --max-image-side 90"
    with serving(str(tiny_model), *options.split()) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with Client(process.stdout.readline().split()[-1]) as client:
            model = client.get_model()
    limits, batching, execution = model.image_limits, model.batching, model.execution
    assert (limits.max_bytes, limits.max_pixels, limits.max_side) == (1234, 5678, 90)
    assert (batching.max_batch, batching.max_delay_ms, batching.max_queue, batching.runners) == (3, 2.5, 9, 2)
    assert model.memory_limits.max_admitted_bytes == 150_000_000  # the other half is for runs
    assert model.warm_sizes == ((8, 12), (40, 48))
    assert (execution.provider, execution.precision, execution.threads) == ("CPUExecutionProvider", "fp32", 1)
    assert {placement.provider for placement in execution.placements} == {"CPUExecutionProvider"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--cuda-graphs", "4"), "CUDA graphs cannot be had on the cpu; leave this out, or use --device cuda"),
        (
            ("--channels-last",),
            "the layout channels last cannot be had on the cpu; leave this out, or use --device cuda",
        ),
    ],
)
def test_what_only_cuda_has_is_refused_on_the_cpu(tiny_model: Path, option: tuple[str, ...], message: str) -> None:
    result = fail(str(tiny_model), "--port", "0", "--device", "cpu", *option)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"fcnseg: error: {message}\n")


@pytest.mark.parametrize("size", ["480", "0x10", "480x", "-1x5", "480x640x3"])
def test_a_size_to_warm_that_is_none_is_refused(tiny_model: Path, size: str) -> None:
    result = fail(str(tiny_model), "--port", "0", "--device", "cpu", "--warm", size)
    assert result.returncode == 2
    assert "is not HEIGHTxWIDTH in pixels, such as 480x640" in result.stderr


def test_a_signal_ends_a_server_that_is_warming(tmp_path: Path) -> None:
    path, port = write_tiny_model(tmp_path / "slow.onnx", work_rounds=2000), free_port()
    sizes = [word for side in range(8, 3200, 8) for word in ("--warm", f"{side}x8")]  # two runs of 0.2 s each
    arguments = [str(path), "--port", str(port), "--device", "cpu", "--threads", "1", *sizes]
    with serving(*arguments) as process, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""


@pytest.fixture(scope="module")
def as_first_process() -> list[str]:
    """What runs a command as the first process of a container; skips where no container may be made."""
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("makes a namespace of processes, which this system does not let it")
    return command


def test_sigterm_ends_a_container_that_has_just_begun_to_start(as_first_process: list[str], tmp_path: Path) -> None:
    """The first import of a heavy package stands still, so that the signal is sent while it is under way."""
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, sys\n"
        "class Halt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in {'numpy', 'cv2', 'PIL', 'pydantic', 'google', 'grpc', 'onnxruntime', 'uvloop'}:\n"
        "            print(name, flush=True)\n"
        "            signal.pause()\n"
        "sys.meta_path.insert(0, Halt())\n"
    )
    command = [*as_first_process, *RUN, "serve", str(tmp_path / "none.onnx")]
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() != ""
            first = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
            os.kill(first, signal.SIGTERM)
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()
