"""The gRPC client: an image goes to a server, its class map comes back as an array."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self, TypeVar

import grpc
import numpy as np
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status
from numpy.typing import NDArray

from fcnseg import masks
from fcnseg.errors import ImageError, ImageTooLargeError, MaskError, RequestError, UsageError
from fcnseg.images import require_pixels
from fcnseg.masks import Encoding
from fcnseg.regions import RegionQuery
from fcnseg.remote import HeatmapGrid, RemoteClassArea, RemoteHeatmap, RemoteModel, RemoteSegmentation, Timings
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from fcnseg.wire import read_grid, read_heatmaps, read_model, read_regions, write_query

_MAX_MESSAGE_BYTES = 1 << 30
_LONGEST_TIMEOUT_S = 86400.0
_Response = TypeVar("_Response")

_TO_WIRE = {
    Encoding.RAW: pb.CLASS_MAP_ENCODING_RAW,
    Encoding.ZSTD: pb.CLASS_MAP_ENCODING_ZSTD,
    Encoding.PNG: pb.CLASS_MAP_ENCODING_PNG,
}
_FROM_WIRE = {value: encoding for encoding, value in _TO_WIRE.items()}
_DTYPES: dict[int, type[np.uint8] | type[np.uint16]] = {
    pb.CLASS_MAP_TYPE_UINT8: np.uint8,
    pb.CLASS_MAP_TYPE_UINT16: np.uint16,
}


class Client:
    """A connection to a server; threads may share it.

    >>> with Client("127.0.0.1:50051") as client:               # doctest: +SKIP
    ...     client.segment("photo.jpg").class_map.shape
    (480, 640)

    Args:
        target: The server's address, `HOST:PORT`.
        timeout_s: How long a request may take, in seconds.
        max_message_bytes: The largest request or answer, in bytes; gRPC's own default of 4 MB is less than one raw
            photograph.

    Raises:
        UsageError: The address or the timeout is not one.
    """

    def __init__(self, target: str, *, timeout_s: float = 30.0, max_message_bytes: int = _MAX_MESSAGE_BYTES) -> None:
        host, _, port = target.rpartition(":")
        if not host or host.startswith(("http:", "https:")) or not (port.isdecimal() and 0 < int(port) < 1 << 16):
            raise UsageError(
                f"server address {target!r} is not HOST:PORT with a port of 1 to 65535, such as 127.0.0.1:50051"
            )
        if not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
            raise UsageError(f"timeout is {timeout_s:g} s; it must be above 0 and at most {_LONGEST_TIMEOUT_S:g}")
        self._target = target
        self._timeout_s = timeout_s
        self._max_message_bytes = max_message_bytes
        options = [
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_message_bytes),
            # A server that has just started is found at once, not after gRPC's first pause of a second.
            ("grpc.initial_reconnect_backoff_ms", 100),
        ]
        self._channel = grpc.insecure_channel(target, options=options)
        self._stub = SegmentationServiceStub(self._channel)  # type: ignore[no-untyped-call] # generated

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; requests under way are cancelled."""
        self._channel.close()

    def segment(
        self,
        image: str | Path | bytes | NDArray[np.uint8],
        *,
        model: str = "",
        version: str = "",
        encoding: Encoding = Encoding.PNG,
        heatmaps: Sequence[str] = (),
        regions: RegionQuery | None = None,
    ) -> RemoteSegmentation:
        """Segment one image.

        Args:
            image: A path, an encoded image's bytes (JPEG, PNG, WebP, TIFF or BMP), or pixels as (H, W, 3) uint8 RGB.
            model: The model's name; empty where the server holds exactly one.
            version: The model's version; empty takes the highest.
            encoding: How the class map travels; the answer is the same in each.
            heatmaps: Classes whose heatmaps are wanted: names (any case) or decimal ids.
            regions: Which regions are wanted; None for none.

        Raises:
            ImageError: The file cannot be read, or the array is not of that shape and dtype.
            RequestError: The server could not be reached, refused the request, or failed.
        """
        request = pb.SegmentRequest(
            model_name=model,
            model_version=version,
            encoding=_TO_WIRE[encoding],
            heatmap_classes=heatmaps,
            regions=None if regions is None else write_query(regions),
        )
        _put_image(request, image, self._max_message_bytes)
        started = time.perf_counter()
        try:
            response: pb.SegmentResponse = self._call(self._stub.Segment, request)
        except RequestError as error:
            if error.field == "encoded" and isinstance(image, (str, Path)):
                raise RequestError(f"image {image}: {error}", error.code, error.field) from error
            raise
        if (heatmaps or regions) and not response.HasField("heatmap_grid"):
            raise RequestError(
                f"the server at {self._target} answers without heatmaps and regions: it is of an older version; update"
                " it, or ask for the mask alone",
                "UNIMPLEMENTED",
            )
        return self._read_segmentation(response, started)

    def list_models(self) -> tuple[RemoteModel, ...]:
        """Return the models that the server holds, by name, then by ascending version.

        Raises:
            RequestError: The server could not be reached, or failed.
        """
        response: pb.ListModelsResponse = self._call(self._stub.ListModels, pb.ListModelsRequest())
        return tuple(read_model(model) for model in response.models)

    def get_model(self, model: str = "", version: str = "") -> RemoteModel:
        """Return one model's description.

        Args:
            model: The model's name; empty where the server holds exactly one.
            version: The model's version; empty takes the highest.

        Raises:
            RequestError: The server could not be reached, or there is no such model.
        """
        request = pb.GetModelRequest(model_name=model, model_version=version)
        response: pb.GetModelResponse = self._call(self._stub.GetModel, request)
        return read_model(response.model)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the server answers.

        Args:
            timeout_s: How long to wait at most, in seconds.

        Raises:
            RequestError: It did not answer within that time.
        """
        try:
            self._stub.ListModels(pb.ListModelsRequest(), timeout=timeout_s, wait_for_ready=True)
        except grpc.RpcError as error:
            self._fail(error, timeout_s)

    def _call(self, method: Callable[..., _Response], request: object) -> _Response:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            self._fail(error, self._timeout_s)

    def _fail(self, error: grpc.RpcError, timeout_s: float) -> NoReturn:
        if not isinstance(error, grpc.Call):
            raise RequestError(f"request to server {self._target} failed: {error}", "UNKNOWN") from error
        code, details = error.code(), " ".join((error.details() or "").split())
        if code == grpc.StatusCode.UNAVAILABLE:
            message = f"no server answers at {self._target} ({details}); start one with 'fcnseg serve'"
        elif code == grpc.StatusCode.DEADLINE_EXCEEDED:
            message = f"server {self._target} did not answer within {timeout_s:g} s; allow it more time"
        elif code == grpc.StatusCode.UNIMPLEMENTED:
            message = f"the server at {self._target} is not one of 'fcnseg serve': {details}"
        else:
            message = f"server {self._target}: {details}"
        raise RequestError(message, code.name, _field(error)) from error

    def _read_segmentation(self, response: pb.SegmentResponse, started: float) -> RemoteSegmentation:
        wire = response.class_map
        encoding, dtype = _FROM_WIRE.get(wire.encoding), _DTYPES.get(wire.type)
        if encoding is None or dtype is None:
            raise RequestError(
                f"server {self._target} answered with encoding {wire.encoding} and type {wire.type}, which this client"
                " does not know; install the server's version of fcnseg",
                "INTERNAL",
            )
        try:
            class_map = masks.decode(wire.data, encoding, shape=(wire.height, wire.width), dtype=dtype)
        except MaskError as error:
            raise RequestError(f"server {self._target} sent a broken class map: {error}", "INTERNAL") from error
        grid = read_grid(response.heatmap_grid) if response.HasField("heatmap_grid") else None
        spent = response.timings
        return RemoteSegmentation(
            class_map=class_map,
            classes=tuple(RemoteClassArea(c.id, c.name, c.pixel_count, c.fraction) for c in response.classes),
            label_map_hash=response.label_map_hash,
            model_name=response.model_name,
            model_version=response.model_version,
            timings=Timings(
                decode_ms=spent.decode_ms,
                queue_ms=spent.queue_ms,
                infer_ms=spent.infer_ms,
                encode_ms=spent.encode_ms,
                total_ms=(time.perf_counter() - started) * 1000,
            ),
            encoding=encoding,
            data=wire.data,
            heatmaps=self._read_heatmaps(response, grid) if grid else (),
            grid=grid,
            regions=read_regions(response.regions),
        )

    def _read_heatmaps(self, response: pb.SegmentResponse, grid: HeatmapGrid) -> tuple[RemoteHeatmap, ...]:
        try:
            return read_heatmaps(response.heatmaps, grid)
        except ValueError as error:
            raise RequestError(
                f"server {self._target} sent a broken heatmap ({error}); ask for it again", "INTERNAL"
            ) from error


def _put_image(
    request: pb.SegmentRequest, image: str | Path | bytes | NDArray[np.uint8], max_message_bytes: int
) -> None:
    if not isinstance(image, (bytes, str, Path)):
        require_pixels(image)
        request.raw.height, request.raw.width = image.shape[:2]
        request.raw.rgb = image.tobytes()
    elif isinstance(image, bytes):
        request.encoded = image
    else:
        try:
            with Path(image).open("rb") as file:
                # One byte beyond the limit is enough to refuse a file, however long (or endless) it is.
                request.encoded = file.read(max_message_bytes + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ImageError(f"image {image} cannot be read: {reason}; check the path") from error
    size = request.ByteSize()
    if size > max_message_bytes:
        raise ImageTooLargeError(
            f"the request would have {size} bytes, more than the client's limit of {max_message_bytes}; send an image"
            " scaled down"
        )


def _field(error: grpc.Call) -> str | None:
    """Return the field that the status names by its `google.rpc.BadRequest`, if it does."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # the trailer contradicts the status: what a proxy made of it
        return None
    for detail in status.details if status is not None else ():
        violations = BadRequest()
        if detail.Unpack(violations) and violations.field_violations:
            name: str = violations.field_violations[0].field
            return name
    return None
