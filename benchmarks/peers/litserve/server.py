"""LitServe: uvicorn, and a worker process that it feeds through ZeroMQ. Run as server.py MODEL PORT THREADS.

No dynamic batching, LitServe's default: on the CPU a batch takes as long as its images.
"""

import sys
from typing import Annotated

import numpy as np
from fastapi import Body, Response
from litserve import LitAPI, LitServer
from numpy.typing import NDArray
from peers.pixels import read_pixels
from session import open_session


class Segmenter(LitAPI):  # type: ignore[misc] # litserve is in its own environment
    def setup(self, device: str) -> None:
        del device
        self._session = open_session(sys.argv[1], int(sys.argv[3]))

    def decode_request(self, request: Annotated[bytes, Body()]) -> NDArray[np.uint8]:
        return read_pixels(request)

    def predict(self, x: NDArray[np.uint8]) -> NDArray[np.uint8]:
        class_map: NDArray[np.uint8] = self._session.run(["class_map"], {"image": x[None]})[0]
        return class_map

    def encode_response(self, output: NDArray[np.uint8]) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    server = LitServer(Segmenter(), accelerator="cpu", workers_per_device=1, timeout=60, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
