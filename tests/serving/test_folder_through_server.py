"""A folder through a server: the masks and the manifest of the folder here."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fcnseg
from fcnseg import Client
from fcnseg.errors import RemoteModelNotFoundError, ServerUnavailableError, UsageError
from fcnseg.folder import FolderOptions, MaskFormat, ServerModel, segment_folder
from fcnseg.images import DEFAULT_LIMITS, ImageLimits
from fcnseg.regions import RegionQuery
from fcnseg.v1 import segmentation_pb2 as pb
from serving.batcher import BatchingConfig
from serving.registry import ModelRegistry
from serving.served_model import ModelConfig
from serving.server import ServerConfig
from tests.image_folders import save, write_noise
from tests.other_server import server_that_answers
from tests.running_server import running_server
from tests.server_process import free_port, server_process
from tests.tiny_model import write_tiny_model

everything = FolderOptions(
    overlay=True, confidence=True, heatmaps=("red",), top=2, regions=RegionQuery(threshold=0.4), in_flight=4
)


def contents(folder: Path) -> dict[str, bytes]:
    """Return what a job wrote, without what tells where it ran."""
    found = {path.name: path.read_bytes() for path in folder.glob("[0-9]*")}
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_bytes().splitlines()]
    for row in rows:
        del row["timings_ms"]
        row["error"] = row["error"] is not None
    return {**found, "manifest": json.dumps(rows).encode()}


@pytest.mark.parametrize(
    "options",
    [FolderOptions(), everything, FolderOptions(mask_format=MaskFormat.COCO), FolderOptions(upright=False)],
    ids=["masks", "everything", "coco", "stored orientation"],
)
def test_what_is_written_is_what_is_written_without_a_server(
    tiny_model: Path, tmp_path: Path, options: FolderOptions
) -> None:
    write_noise(tmp_path / "in", 15)
    save(tmp_path / "in" / "900.jpg", (40, 30))
    (tmp_path / "in" / "901.jpg").write_bytes(b"broken")
    list(segment_folder(fcnseg.load(tiny_model, "cpu"), tmp_path / "in", tmp_path / "here", options))
    with running_server(tiny_model) as server, Client(server.address) as client:
        model = ServerModel(client, "tiny", options)
        results = list(segment_folder(model, tmp_path / "in", tmp_path / "there", options))
        again = list(segment_folder(model, tmp_path / "in", tmp_path / "there", options))
    assert [result.image.name for result in results if result.error] == ["901.jpg"]
    assert [result.image.name for result in again if not result.skipped] == ["901.jpg"]
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_classes_whose_names_are_numbers_are_asked_for_by_a_server_too(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.onnx", class_names=("1", "2", "3"))
    write_noise(tmp_path / "in", 3)
    options = FolderOptions(heatmaps=("3",), top=3)
    list(segment_folder(fcnseg.load(model, "cpu"), tmp_path / "in", tmp_path / "here", options))
    with running_server(model) as server, Client(server.address) as client:
        list(segment_folder(ServerModel(client, "m", options), tmp_path / "in", tmp_path / "there", options))
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert len(list((tmp_path / "here").glob("*.heatmap-*.jpg"))) == 9


def test_a_class_that_no_word_finds_at_the_server_is_refused_at_once(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.onnx", class_names=("1", "1", "3"))
    with (
        running_server(model) as server,
        Client(server.address) as client,
        pytest.raises(UsageError, match="class 1 cannot be asked for"),
    ):
        ServerModel(client, "m", FolderOptions(top=1))


def test_a_server_that_numbers_classes_otherwise_is_told_of_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "1.jpg", (40, 30))
    model = pb.Model(name="theirs", version="1", classes=[pb.Class(id=1, name="road"), pb.Class(id=2, name="sky")])
    with server_that_answers(model=model) as address:
        command = [sys.executable, "-m", "fcnseg", "segment", "theirs", "in", "out", "--server", address]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 2
    assert run.stderr == (
        "fcnseg: error: the server's model 'theirs' cannot be used: class ids must be 0 to K - 1 in order, and at least"
        " one; got [1, 2]\n"
    )
    assert not (tmp_path / "out").exists()


def test_the_limits_on_images_are_the_servers(tiny_model: Path, tmp_path: Path) -> None:
    large = save(tmp_path / "in" / "1.bmp", (200, 100))
    large.write_bytes(large.read_bytes() + bytes(DEFAULT_LIMITS.max_bytes))
    save(tmp_path / "in" / "2.png", (200, 100))
    for most, failed in ((DEFAULT_LIMITS.max_pixels, ""), (10_000, "limit of 10000")):
        limits = ImageLimits(max_bytes=2**27, max_pixels=most)
        config = ServerConfig(limits=limits)
        with running_server(tiny_model, config) as server, Client(server.address) as client:
            model = ServerModel(client, "tiny", FolderOptions(overwrite=True))
            results = list(segment_folder(model, tmp_path / "in", tmp_path / "out", FolderOptions(overwrite=True)))
            assert all(failed in str(result.error) if failed else result.error is None for result in results)


def test_heatmaps_are_counted_among_what_images_hold_here(tiny_model: Path) -> None:
    with running_server(tiny_model) as server, Client(server.address) as client:
        plain, shown = (
            ServerModel(client, "tiny", FolderOptions(heatmaps=heatmaps)).held_bytes(400, 600)
            for heatmaps in ((), ("red", "blue"))
        )
        answer = client.segment(np.zeros((400, 600, 3), np.uint8), heatmaps=("red", "blue"))
    assert shown - plain == sum(heatmap.scores.nbytes + heatmap.probabilities.nbytes for heatmap in answer.heatmaps) > 0


def test_a_server_with_little_room_gets_everything_done(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.onnx", work_rounds=20)
    write_noise(tmp_path / "in", 40)
    registry = ModelRegistry([model], ModelConfig("cpu", batching=BatchingConfig(max_queue=1)))
    options = FolderOptions(in_flight=8)
    with running_server(registry, ServerConfig()) as server, Client(server.address, retries=0) as client:
        results = list(segment_folder(ServerModel(client, "m", options), tmp_path / "in", tmp_path / "out", options))
    assert [result.error for result in results] == [None] * 40


def test_an_image_beyond_what_the_client_sends_fails_alone(tiny_model: Path, tmp_path: Path) -> None:
    names = write_noise(tmp_path / "in", 3)
    (tmp_path / "in" / "001.png").write_bytes((tmp_path / "in" / "001.png").read_bytes() + bytes(10_000))
    with running_server(tiny_model) as server, Client(server.address, max_message_bytes=10_000) as client:
        model = ServerModel(client, "tiny", FolderOptions())
        results = list(segment_folder(model, tmp_path / "in", tmp_path / "out"))
    assert [result.image.name for result in results if result.mask] == [names[0], names[2]]
    assert results[1].row.error is not None
    assert "more than the client's limit of 10000" in results[1].row.error


def test_a_model_that_the_server_does_not_hold_is_told_before_anything_is_written(
    tiny_model: Path, tmp_path: Path
) -> None:
    with (
        running_server(tiny_model) as server,
        Client(server.address) as client,
        pytest.raises(RemoteModelNotFoundError, match="other"),
    ):
        ServerModel(client, "other/2", FolderOptions())
    assert not (tmp_path / "out").exists()


def test_a_server_that_dies_ends_the_job_which_goes_on_with_the_next(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.onnx", work_rounds=60)
    names = write_noise(tmp_path / "in", 100)
    port = free_port()
    options = FolderOptions(in_flight=4)
    with Client(f"127.0.0.1:{port}", retries=1) as client:
        with server_process(model, port) as server:
            results = segment_folder(ServerModel(client, "m", options), tmp_path / "in", tmp_path / "out", options)
            done = [next(results) for _ in range(10)]
            server.kill()
            with pytest.raises(ServerUnavailableError):
                done += list(results)
        with server_process(model, port):
            client.wait_until_ready(60)
            again = list(segment_folder(ServerModel(client, "m", options), tmp_path / "in", tmp_path / "out", options))
    assert [result.image.name for result in again] == names
    assert sum(result.skipped for result in again) >= len(done)
    assert all(result.error is None for result in again)


def test_a_server_that_dies_leaves_nothing_waiting_for_memory(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.onnx", work_rounds=60)
    write_noise(tmp_path / "in", 40)
    port = free_port()
    options = FolderOptions(memory_bytes=1)  # images one by one
    with Client(f"127.0.0.1:{port}", retries=1) as client, server_process(model, port) as server:
        results = segment_folder(ServerModel(client, "m", options), tmp_path / "in", tmp_path / "out", options)
        next(results)
        server.kill()
        with pytest.raises(ServerUnavailableError):
            list(results)


def test_the_command_goes_through_a_server(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_noise(tmp_path / "in", 5)
    with caplog.at_level("INFO", "serving.calls"), running_server(tiny_model) as server:
        command = [sys.executable, "-m", "fcnseg", "segment", "tiny", tmp_path / "in", tmp_path / "out"]
        done = subprocess.run(
            [*command, "--server", server.address], capture_output=True, text=True, check=False, timeout=180
        )
        wrong = subprocess.run(
            [*command[:4], "other", *command[5:], "--server", server.address],
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
    assert done.returncode == 0, done.stderr
    assert "5 of 5 images segmented" in done.stdout
    calls = [vars(record)["fields"] for record in caplog.records]
    assert len({call["peer"] for call in calls if call["method"].endswith("/Segment")}) == 5
    assert "on the server's cpu" in done.stdout
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
