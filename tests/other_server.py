"""A gRPC server of another make, which answers as it is told to, whatever it is asked."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import (
    SegmentationServiceServicer,
    add_SegmentationServiceServicer_to_server,
)

Answer = Callable[[pb.SegmentRequest, grpc.ServicerContext], pb.SegmentResponse]
StreamAnswer = Callable[[Iterator[pb.SegmentStreamRequest], grpc.ServicerContext], Iterator[pb.SegmentStreamResponse]]

ONE_PIXEL = pb.ClassMap(height=1, width=1, type=pb.CLASS_MAP_TYPE_UINT8, encoding=pb.CLASS_MAP_ENCODING_RAW, data=b"0")


class Wide:
    """Answers a stream with class maps of 4 MB, so that few fit into what gRPC keeps for a client that does not read.

    Attributes:
        all_sent: Set when the last answer has left.
    """

    def __init__(self) -> None:
        self.all_sent = threading.Event()

    def __call__(
        self, requests: Iterator[pb.SegmentStreamRequest], _: grpc.ServicerContext
    ) -> Iterator[pb.SegmentStreamResponse]:
        ids = pb.ClassMap(
            height=2000,
            width=2000,
            type=pb.CLASS_MAP_TYPE_UINT8,
            encoding=pb.CLASS_MAP_ENCODING_RAW,
            data=bytes(2000**2),
        )
        for request in requests:
            yield pb.SegmentStreamResponse(id=request.id, response=pb.SegmentResponse(class_map=ids))
        self.all_sent.set()


@contextmanager
def server_that_answers(
    answer: pb.SegmentResponse | Answer | None = None,
    stream: StreamAnswer | None = None,
    model: pb.Model | None = None,
) -> Iterator[str]:
    """Serve one answer to Segment, or what a function returns, a function's to SegmentStream, and a model to GetModel.

    Yields:
        The address.
    """

    class Servicer(SegmentationServiceServicer):
        def Segment(self, request: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:  # noqa: N802
            assert answer is not None
            return answer if isinstance(answer, pb.SegmentResponse) else answer(request, context)

        def SegmentStream(  # noqa: N802
            self, request_iterator: Iterator[pb.SegmentStreamRequest], context: grpc.ServicerContext
        ) -> Iterator[pb.SegmentStreamResponse]:
            assert stream is not None
            return stream(request_iterator, context)

        def GetModel(self, _request: pb.GetModelRequest, _: grpc.ServicerContext) -> pb.GetModelResponse:  # noqa: N802
            return pb.GetModelResponse(model=model)

    server = grpc.server(ThreadPoolExecutor(4))
    add_SegmentationServiceServicer_to_server(Servicer(), server)  # type: ignore[no-untyped-call] # generated
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
