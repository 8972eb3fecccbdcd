"""Triton by PyTriton: a function behind NVIDIA's tritonserver. Run as server.py MODEL PORT THREADS.

No dynamic batching: on the CPU a batch takes as long as its images.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from session import open_session

if TYPE_CHECKING:
    from pytriton.proxy.types import Request

Answers = list[dict[str, NDArray[np.uint8]]]


def segmenter(model: Path, threads: int) -> Callable[[Sequence["Request"]], Answers]:
    session = open_session(model, threads)

    def segment(requests: Sequence["Request"]) -> Answers:
        return [{"class_map": session.run(["class_map"], {"image": request["image"]})[0]} for request in requests]

    return segment


if __name__ == "__main__":
    path, port, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    config = TritonConfig(grpc_address="127.0.0.1", grpc_port=port, allow_http=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name=path.stem,
            infer_func=segmenter(path, threads),
            inputs=[Tensor(name="image", dtype=np.uint8, shape=(-1, -1, -1, 3))],
            outputs=[Tensor(name="class_map", dtype=np.uint8, shape=(-1, -1, -1))],
            config=ModelConfig(batching=False),
        )
        triton.serve()
