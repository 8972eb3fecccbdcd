"""What a user of Triton's client does with the server, run by `test_oip_tritonclient` in an environment of its own.

    python tritonclient_script.py HOST:PORT FOLDER

FOLDER holds `pixels.npy`, (N, H, W, 3) uint8, and `image.png`; results go there as `NAME.npy`, and what else was
answered to stdout as JSON. Triton's client and the server define the same messages, so they cannot share a process.
"""

import base64
import json
import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

TIMEOUT_S = 120


def main() -> None:
    address, folder = sys.argv[1], Path(sys.argv[2])
    pixels = np.load(folder / "pixels.npy")
    client = triton.InferenceServerClient(address)
    report = {
        "server": describe_server(client),
        "repository": change_repository(client),
        "infer": infer(client, folder, pixels),
        "async": infer_later(client, pixels),
        "stream": infer_stream(client, pixels),
        "errors": provoke(client, pixels),
        "statistics": MessageToDict(client.get_inference_statistics("tiny", "2")),
        "files": [base64.b64encode(file.DESCRIPTOR.serialized_pb).decode() for file in (service_pb2, model_config_pb2)],
    }
    client.close()
    print(json.dumps(report))  # noqa: T201


def describe_server(client: triton.InferenceServerClient) -> dict[str, object]:
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "models": {name: client.is_model_ready(name) for name in ("tiny", "many", "nobody")},
        "versions": {version: client.is_model_ready("tiny", version) for version in ("1", "2", "3")},
        "metadata": MessageToDict(client.get_server_metadata()),
        "model": MessageToDict(client.get_model_metadata("tiny")),
        "model many": client.get_model_metadata("many", as_json=True),
        "config": MessageToDict(client.get_model_config("tiny", "1").config),
    }


def change_repository(client: triton.InferenceServerClient) -> list[object]:
    def index() -> object:
        return MessageToDict(client.get_model_repository_index())["models"]

    steps = [index()]
    client.unload_model("other")
    steps += [index(), client.is_model_ready("other")]
    client.load_model("other")
    return [*steps, index(), client.is_model_ready("other")]


def pixel_input(pixels: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return tensor


def infer(client: triton.InferenceServerClient, folder: Path, pixels: np.ndarray) -> dict[str, object]:
    def save(name: str, result: triton.InferResult, output: str = "class_map") -> None:
        np.save(folder / f"{name}.npy", result.as_numpy(output), allow_pickle=True)

    everything = client.infer("tiny", [pixel_input(pixels)], request_id="seven", client_timeout=TIMEOUT_S)
    for output in ("class_map", "heatmap", "confidence"):
        save(output, everything, output)
    save("many", client.infer("many", [pixel_input(pixels)], outputs=[triton.InferRequestedOutput("class_map")]))

    files = triton.InferInput("image", [2], "BYTES")
    files.set_data_from_numpy(np.array([(folder / "image.png").read_bytes()] * 2, dtype=np.object_))
    wanted = triton.InferRequestedOutput("class_map")
    save("files", client.infer("tiny", [files], outputs=[wanted], timeout=20_000_000, priority=1))

    encoded = triton.InferRequestedOutput("class_map")
    encoded._get_tensor().parameters["encoding"].string_param = "png"
    small = client.infer("tiny", [pixel_input(pixels)], outputs=[encoded])
    save("png", small)
    response = everything.get_response()
    return {
        "id": response.id,
        "model": [response.model_name, response.model_version],
        "outputs": [output.name for output in response.outputs],
        "only": [output.name for output in small.get_response().outputs],
    }


def infer_later(client: triton.InferenceServerClient, pixels: np.ndarray) -> list[object]:
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    for i in range(5):
        client.async_infer(
            "tiny",
            [pixel_input(pixels[:1])],
            callback=lambda result, error: answers.put((result, error)),
            request_id=str(i),
        )
    found = [answers.get(timeout=TIMEOUT_S) for _ in range(5)]
    return [[result.get_response().id, str(error)] for result, error in found]


def infer_stream(client: triton.InferenceServerClient, pixels: np.ndarray) -> list[object]:
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for i in range(20):
        name = "nobody" if i == 7 else "tiny"
        client.async_stream_infer(
            name, [pixel_input(pixels[:1])], request_id=str(i), enable_empty_final_response=i == 9
        )
    found = [answers.get(timeout=TIMEOUT_S) for _ in range(20)]
    client.stop_stream()
    return [
        ["", error.message(), False]
        if error
        else [
            result.get_response().id,
            result.as_numpy("class_map").tobytes().hex(),
            "triton_final_response" in result.get_response().parameters,
        ]
        for result, error in found
    ]


def provoke(client: triton.InferenceServerClient, pixels: np.ndarray) -> dict[str, list[str]]:
    wrong_name = triton.InferInput("picture", list(pixels.shape), "UINT8")
    wrong_name.set_data_from_numpy(pixels)
    wrong_type = triton.InferInput("image", list(pixels.shape), "FP32")
    wrong_type.set_data_from_numpy(pixels.astype(np.float32))
    good = pixel_input(pixels)
    attempts = {
        "model": lambda: client.infer("nobody", [good]),
        "version": lambda: client.infer("tiny", [good], model_version="9"),
        "input": lambda: client.infer("tiny", [wrong_name]),
        "datatype": lambda: client.infer("tiny", [wrong_type]),
        "output": lambda: client.infer("tiny", [good], outputs=[triton.InferRequestedOutput("mask")]),
        "classification": lambda: client.infer("tiny", [good], outputs=[triton.InferRequestedOutput("class_map", 3)]),
        "late": lambda: client.infer("slow", [good], client_timeout=0.2),
        "too late in the queue": lambda: client.infer("slow", [good], timeout=1),
        "load": lambda: client.load_model("nobody"),
        "load broken": lambda: client.load_model("broken"),
        "load with a configuration": lambda: client.load_model("tiny", config="{}"),
        "unload": lambda: client.unload_model("nobody"),
        "metadata": lambda: client.get_model_metadata("nobody"),
        "statistics": lambda: client.get_inference_statistics("nobody"),
        "shared memory": client.get_system_shared_memory_status,
    }
    return {name: list(catch(attempt)) for name, attempt in attempts.items()}


def catch(attempt: object) -> tuple[str, str]:
    try:
        attempt()
    except InferenceServerException as error:
        return error.status(), error.message()
    return "no error", ""


if __name__ == "__main__":
    main()
