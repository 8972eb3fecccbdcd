"""The least that a gRPC server around a model can be: read a request, run, answer; no queue, no limits, no deadlines.

Run it: python benchmarks/bare_server.py MODEL THREADS

serving_load.py starts it, to tell what fcnseg's server adds to what gRPC, the codecs and a process of its own cost.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
from session import open_session

import fcnseg
from fcnseg import images, masks
from fcnseg.masks import Encoding
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1 import segmentation_pb2_grpc as rpc

ENCODINGS = {pb.CLASS_MAP_ENCODING_RAW: Encoding.RAW, pb.CLASS_MAP_ENCODING_PNG: Encoding.PNG}


class Service(rpc.SegmentationServiceServicer):
    """Answers Segment."""

    def __init__(self, model: Path, threads: int) -> None:
        self._session = open_session(model, threads)
        self._label_map = fcnseg.load(model, "cpu").info.label_map

    def Segment(self, request: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:  # noqa: ARG002, N802
        """Answer one image."""
        raw = request.raw
        if request.encoded:
            image = images.decode(request.encoded)
        else:
            image = np.frombuffer(raw.rgb, np.uint8).reshape(raw.height, raw.width, 3)
        class_map = self._session.run(["class_map"], {"image": image[None]})[0][0]
        data = masks.encode(class_map, ENCODINGS[request.encoding], self._label_map)
        height, width = class_map.shape
        return pb.SegmentResponse(
            class_map=pb.ClassMap(height=height, width=width, encoding=request.encoding, data=data)
        )


def main() -> None:
    """Serve until killed."""
    server = grpc.server(ThreadPoolExecutor(1))
    rpc.add_SegmentationServiceServicer_to_server(Service(Path(sys.argv[1]), int(sys.argv[2])), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
