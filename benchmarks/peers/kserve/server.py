"""KServe's SDK: a model in its gRPC server. Run as server.py MODEL PORT THREADS.

The run is in a thread, one at a time: called directly in `predict` it would hold up the event loop, and so the next
request's reading. No log line a request.
"""

import asyncio
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from numpy.typing import NDArray
from session import open_session


class Segmenter(Model):  # type: ignore[misc] # kserve is in its own environment
    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(path.stem)
        self._session = open_session(path, threads)
        self._runner = ThreadPoolExecutor(1)
        self.ready = True

    async def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:
        del headers
        images = payload.inputs[0].as_numpy()
        class_map = await asyncio.get_running_loop().run_in_executor(self._runner, self._run, images)
        output = InferOutput("class_map", list(class_map.shape), "UINT8")
        output.set_data_from_numpy(class_map, binary_data=True)
        return InferResponse(payload.id, self.name, [output])

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        class_map: NDArray[np.uint8] = self._session.run(["class_map"], {"image": images})[0]
        return class_map


if __name__ == "__main__":
    model = Segmenter(Path(sys.argv[1]), int(sys.argv[3]))
    server = ModelServer(http_port=0, grpc_port=int(sys.argv[2]), enable_latency_logging=False)
    logging.getLogger("kserve").setLevel(logging.WARNING)
    server.start([model])
