"""mosec: a worker process behind a web server in Rust. Run as server.py MODEL PORT THREADS.

No dynamic batching, mosec's default: on the CPU a batch takes as long as its images.
"""

import os
import sys

import numpy as np
from mosec import Server, Worker
from numpy.typing import NDArray
from peers.pixels import read_pixels
from session import open_session


class Segmenter(Worker):  # type: ignore[misc] # mosec is in its own environment
    req_mime_type = resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._session = open_session(sys.argv[1], int(sys.argv[3]))

    def deserialize(self, data: bytes) -> NDArray[np.uint8]:
        return read_pixels(data)

    def forward(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        class_map: NDArray[np.uint8] = self._session.run(["class_map"], {"image": data[None]})[0]
        return class_map

    def serialize(self, data: NDArray[np.uint8]) -> bytes:
        return data.tobytes()


if __name__ == "__main__":
    os.environ.update(MOSEC_ADDRESS="127.0.0.1", MOSEC_PORT=sys.argv[2])
    os.environ.update(MOSEC_TIMEOUT="60000", MOSEC_LOG_LEVEL="warning")
    server = Server()
    server.append_worker(Segmenter)
    server.run()
