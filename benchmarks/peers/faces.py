"""What a server is asked, and how its answer is read: the same photograph and class map over each protocol."""

from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection

import grpc
import grpc_load
import numpy as np
from h2load import Request
from numpy.typing import NDArray
from peers.pixels import write_pixels

from fcnseg.v1 import segmentation_pb2
from serving.oip import inference_pb2


@dataclass(frozen=True)
class Face:
    """One way to ask a server for a class map.

    Attributes:
        title: As the table names it.
        path: The URL's path; of a method for gRPC.
        grpc: Whether it is gRPC, or bytes over HTTP/1.1.
        write: Writes the request to a model, by its name, for an image, (H, W, 3) uint8.
        read: Reads the class map's bytes from an answer.
    """

    title: str
    path: str
    grpc: bool
    write: Callable[[str, NDArray[np.uint8]], bytes]
    read: Callable[[bytes], bytes]

    def request(self, model: str, image: NDArray[np.uint8]) -> Request:
        return Request(self.path, self.write(model, image), self.grpc)

    def ask(self, address: str, request: Request) -> bytes:
        """Ask once, and return the class map's bytes.

        Raises:
            grpc.RpcError: The server did not answer, or refused.
            OSError: It did not over HTTP.
        """
        if self.grpc:
            with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
                call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(self.path)
                return self.read(call(request.body, timeout=60))
        connection = HTTPConnection(address, timeout=60)
        try:
            connection.request("POST", self.path, request.body, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ConnectionError(f"status {answer.status}: {body[:200].decode(errors='replace')}")
        return self.read(body)


def _write_infer(model: str, image: NDArray[np.uint8]) -> bytes:
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, *image.shape])
    output = inference_pb2.ModelInferRequest.InferRequestedOutputTensor(name="class_map")
    request = inference_pb2.ModelInferRequest(
        model_name=model, inputs=[tensor], outputs=[output], raw_input_contents=[image.tobytes()]
    )
    return request.SerializeToString()


def _read_infer(answer: bytes) -> bytes:
    response = inference_pb2.ModelInferResponse.FromString(answer)
    return response.raw_output_contents[0] if response.raw_output_contents else b""


def _write_segment(model: str, image: NDArray[np.uint8]) -> bytes:
    height, width, _ = image.shape
    raw = segmentation_pb2.RawImage(height=height, width=width, rgb=image.tobytes())
    encoding = segmentation_pb2.CLASS_MAP_ENCODING_RAW
    return segmentation_pb2.SegmentRequest(model_name=model, raw=raw, encoding=encoding).SerializeToString()


def _read_segment(answer: bytes) -> bytes:
    return segmentation_pb2.SegmentResponse.FromString(answer).class_map.data


def pixels(path: str) -> Face:
    """Pixels over HTTP/1.1."""
    return Face("HTTP/1.1, pixels", path, grpc=False, write=lambda _, image: write_pixels(image), read=bytes)


INFER = Face("gRPC, ModelInfer", "/inference.GRPCInferenceService/ModelInfer", True, _write_infer, _read_infer)
SEGMENT = Face("gRPC, Segment", grpc_load.SEGMENT, True, _write_segment, _read_segment)
