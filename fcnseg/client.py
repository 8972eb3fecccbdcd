"""The gRPC client: an image goes to a server, its class map comes back as an array."""

import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import grpc
from google.protobuf.wrappers_pb2 import Int32Value

from fcnseg.access import Access
from fcnseg.errors import RequestError
from fcnseg.exchange import (
    DEFAULT_IN_FLIGHT,
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_S,
    MAX_MESSAGE_BYTES,
    Asked,
    AskedItem,
    Exchange,
    require_stream,
)
from fcnseg.masks import Encoding
from fcnseg.query import ImageSource, OverlayQuery, SegmentQuery, StreamSource, require_model
from fcnseg.readiness import CHECK, PAUSE_S, WHOLE_SERVER, Readiness
from fcnseg.regions import RegionQuery
from fcnseg.remote import RemoteModel, RemoteSegmentation, StreamItem
from fcnseg.tls import ClientTls
from fcnseg.v1 import model_admin_pb2 as admin_pb
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.model_admin_pb2_grpc import ModelAdminServiceStub
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from fcnseg.wire import read_model, read_models

_Response = TypeVar("_Response")


class Client:
    """A client of a server, or of several alike; threads may share it. `AsyncClient` is the same for asyncio.

    >>> with Client("127.0.0.1:50051") as client:               # doctest: +SKIP
    ...     client.segment("photo.jpg").class_map.shape
    (480, 640)

    Args:
        server: The server's address, `HOST:PORT`. Where the name has several addresses, as a headless service's has, or
            several are given as `ipv4:ADDRESS:PORT,ADDRESS:PORT`, requests go in turn to those that can be reached.
        timeout_s: How long a request may take, its retries included, in seconds; of a stream, how long the next answer
            may take.
        retries: How often a request is sent again where the server does not answer or has no room, 0 to 4. The pauses
            between are those the server asks for, or 0.4, 1, 2.5 and 6.25 s. Streams are not retried.
        max_message_bytes: The largest request, and the largest answer, in bytes; an answer may not decode to more.
        tls: True encrypts the connection and checks the server's certificate by the public authorities; a `ClientTls`
            names other files. False does neither.
        token: The token that the server knows the client by; `fcnseg token` makes one.
        token_in_clear: Whether the token may go to another machine without TLS, where anyone on the way can read it.
        connections: Number of connections, at least 1, which requests use in turn. Several are of use where not
            requests but connections are balanced, by `fcnseg serve --processes` or a TCP balancer.

    Raises:
        UsageError: An argument is not valid, or the token would go to another machine without TLS.
    """

    def __init__(
        self,
        server: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        tls: bool | ClientTls = False,
        token: str | None = None,
        token_in_clear: bool = False,
        connections: int = 1,
    ) -> None:
        access = Access.of(tls, token, token_in_clear=token_in_clear)
        self._exchange = Exchange(server, timeout_s, retries, max_message_bytes, access, connections)
        options = self._exchange.channel_options
        credentials = access.tls and access.tls.credentials()
        self._channels = [
            grpc.secure_channel(server, credentials, options) if credentials else grpc.insecure_channel(server, options)
            for _ in range(connections)
        ]
        self._stubs = itertools.cycle([SegmentationServiceStub(channel) for channel in self._channels])
        first = self._channels[0]
        self._admin = ModelAdminServiceStub(first)
        self._health: Callable[..., Int32Value] = first.unary_unary(CHECK, None, Int32Value.FromString)
        self._closed = False

    def __repr__(self) -> str:
        """Name the server, and no token."""
        return f"Client({self._exchange.server!r})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        self._exchange.refuse_to_move()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; requests under way are cancelled."""
        self._closed = True
        for channel in self._channels:
            channel.close()

    def segment(
        self,
        image: ImageSource,
        *,
        model: str = "",
        version: str = "",
        encoding: Encoding = Encoding.PNG,
        heatmaps: Sequence[str] = (),
        regions: RegionQuery | None = None,
        confidence: bool = False,
        overlay: bool | OverlayQuery = False,
        classes: Sequence[str] = (),
    ) -> RemoteSegmentation:
        """Segment one image.

        Args:
            image: A path, an encoded image's bytes (JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF), or pixels as (H, W, 3)
                uint8 RGB.
            model: The model's name; empty where the server holds exactly one.
            version: The model's version; empty takes the highest.
            encoding: How the class map travels; the answer is the same in each.
            heatmaps: Classes whose heatmaps are wanted: names (any case) or decimal ids.
            regions: Which regions are wanted; None for none.
            confidence: Whether the confidence map is wanted.
            overlay: Whether the image tinted with its classes' colours is wanted, or how it is drawn.
            classes: The only classes that the class map is to have, by names (any case) or decimal ids; pixels of other
                classes get the answer's `other_id`. Empty stands for all classes.

        Raises:
            ImageError: The file cannot be read, or the array is not of that shape and dtype.
            InvalidRequestError: The server cannot read the image, or a class is unknown.
            RemoteModelNotFoundError: There is no such model or version.
            UnauthenticatedError: The server requires a token, and got none or one that it does not know.
            PermissionDeniedError: The server does not let the client make the request.
            ServerOverloadedError: The server has no room, and had none at each retry.
            ServerUnavailableError: The server does not answer, and did not at any retry.
            RequestTimeoutError: There was no answer in time.
            RequestError: The server failed.
        """
        wanted = SegmentQuery(model, version, encoding, heatmaps, regions, confidence, overlay, classes)
        asked, request = self._exchange.ask(image, wanted)
        response: pb.SegmentResponse = self._call(next(self._stubs).Segment, request, asked)
        return self._exchange.read(asked, response)

    def segment_stream(
        self,
        images: Iterable[StreamSource],
        *,
        model: str = "",
        version: str = "",
        encoding: Encoding = Encoding.PNG,
        heatmaps: Sequence[str] = (),
        regions: RegionQuery | None = None,
        confidence: bool = False,
        overlay: bool | OverlayQuery = False,
        classes: Sequence[str] = (),
        in_flight: int = DEFAULT_IN_FLIGHT,
    ) -> Generator[StreamItem, None, None]:
        """Segment images one after another, such as the frames of a video, however many there are.

        Images are taken in one of gRPC's threads, and only while fewer than `in_flight` are unanswered. An exception of
        `images` is raised here, after the answers to the images before it.

        Args:
            images: Images, or pairs of an id and an image. Without an id, an image's position is its id.
            model: As for `segment`, and so are the others.
            version: As for `segment`.
            encoding: As for `segment`.
            heatmaps: As for `segment`.
            regions: As for `segment`.
            confidence: As for `segment`.
            overlay: As for `segment`.
            classes: As for `segment`.
            in_flight: How many images may be sent and unanswered at a time, at least 1.

        Yields:
            An item for each image, in the images' order. An image that cannot be read or answered does not end the
            stream. Closing the generator ends it at the server too.

        Raises:
            UsageError: `images` is a single path or file, `in_flight` is below 1, or an id is longer than 256
                characters or not Unicode text.
            RequestError: The server could not be reached, went away, or took too long; see `segment` for its kinds.
        """
        wanted = SegmentQuery(model, version, encoding, heatmaps, regions, confidence, overlay, classes)
        require_stream(images, in_flight)
        self._exchange.require_open(closed=self._closed)
        return _Stream(self._exchange, self._begin_stream, images, wanted, in_flight).items()

    def list_models(self) -> tuple[RemoteModel, ...]:
        """Return the models that the server holds, by name, then by ascending version.

        Raises:
            RequestError: The server could not be reached, or failed; see `segment` for its kinds.
        """
        response: pb.ListModelsResponse = self._call(next(self._stubs).ListModels, pb.ListModelsRequest())
        return read_models(response.models)

    def get_model(self, model: str = "", version: str = "") -> RemoteModel:
        """Return one model's description.

        Args:
            model: The model's name; empty where the server holds exactly one.
            version: The model's version; empty takes the highest.

        Raises:
            RemoteModelNotFoundError: There is no such model or version.
            RequestError: The server could not be reached, or failed; see `segment` for its kinds.
        """
        require_model(model, version)
        request = pb.GetModelRequest(model_name=model, model_version=version)
        response: pb.GetModelResponse = self._call(next(self._stubs).GetModel, request)
        return read_model(response.model)

    def load_model(self, model: str) -> tuple[RemoteModel, ...]:
        """Load a model as the server's repository holds it now, and return all models that the server then serves.

        Versions that are new or have changed replace the old ones without failing any request. The call returns when
        they are open and warm.

        Args:
            model: The model's name.

        Raises:
            RemoteModelNotFoundError: The repository holds no such model.
            RemoteModelFileError: A version cannot be opened; all stays as it was.
            UnauthenticatedError: The server requires a token, and got none or one that it does not know.
            PermissionDeniedError: The server does not let the client change what is served.
            RequestError: The server could not be reached, or failed; see `segment` for its kinds.
        """
        require_model(model)
        request = admin_pb.LoadModelRequest(model_name=model)
        response: admin_pb.LoadModelResponse = self._call(self._admin.LoadModel, request)
        return read_models(response.models)

    def unload_model(self, model: str, version: str = "") -> tuple[RemoteModel, ...]:
        """Stop serving a model until it is loaded again, and return all models that the server then serves.

        Args:
            model: The model's name.
            version: The version; empty stands for all of them.

        Raises:
            RemoteModelNotFoundError: No such model or version is served.
            RequestError: As for `load_model`.
        """
        require_model(model, version)
        request = admin_pb.UnloadModelRequest(model_name=model, model_version=version)
        response: admin_pb.UnloadModelResponse = self._call(self._admin.UnloadModel, request)
        return read_models(response.models)

    def reload_model(self, model: str) -> tuple[RemoteModel, ...]:
        """Open a served model again, even if its files have not changed; otherwise as `load_model`.

        Args:
            model: The model's name.

        Raises:
            RemoteModelNotFoundError: No such model is served, or the repository no longer holds it.
            RequestError: As for `load_model`.
        """
        require_model(model)
        request = admin_pb.ReloadModelRequest(model_name=model)
        response: admin_pb.ReloadModelResponse = self._call(self._admin.ReloadModel, request)
        return read_models(response.models)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the server is ready: it answers, its models are warm, and it is not stopping.

        It asks the server's health service, which needs no token.

        Args:
            timeout_s: How long to wait at most, in seconds, up to a day.

        Raises:
            UsageError: The time is not above 0, or longer than a day.
            RequestError: It was not ready within that time, or is not one of `fcnseg serve`.
        """
        readiness = self._exchange.readiness(timeout_s)
        while True:
            try:
                if readiness.is_told_by(self._call(self._health, WHOLE_SERVER, within=readiness)):
                    return
            except RequestError as error:
                readiness.require_more(error)
            time.sleep(min(PAUSE_S, readiness.left_s))

    def _call(
        self,
        method: Callable[..., _Response],
        request: object,
        asked: Asked | None = None,
        within: Readiness | None = None,
    ) -> _Response:
        """Call a method; with `within`, wait for a server that does not answer yet for as long as that says."""
        self._exchange.require_open(closed=self._closed)
        timeout_s = self._exchange.timeout_s if within is None else within.timeout_s
        left_s = timeout_s if within is None else within.left_s
        try:
            return method(request, timeout=left_s, metadata=self._exchange.metadata, wait_for_ready=within is not None)
        except grpc.RpcError as error:
            raise self._exchange.failure(error, asked, timeout_s) from error
        except ValueError:  # what gRPC raises where another thread has closed the channel in the meantime
            self._exchange.require_open(closed=self._closed)
            raise

    def _begin_stream(self, requests: Iterator[pb.SegmentStreamRequest]) -> Any:
        """Call the method of streams."""
        self._exchange.require_open(closed=self._closed)
        try:
            return next(self._stubs).SegmentStream(requests, metadata=self._exchange.metadata)
        except ValueError:  # as in `_call`
            self._exchange.require_open(closed=self._closed)
            raise


class _Stream:
    """One stream: a thread of gRPC takes images and sends them, another reads answers, the caller's puts them in order.

    The reader's thread is there for the sake of the timeout: gRPC has none for the next answer.
    """

    def __init__(
        self,
        exchange: Exchange,
        begin: Callable[[Iterator[pb.SegmentStreamRequest]], Any],
        images: Iterable[StreamSource],
        query: SegmentQuery,
        in_flight: int,
    ) -> None:
        self._exchange = exchange
        self._begin = begin
        self._images = images
        self._query = query
        self._slots = threading.Semaphore(in_flight)
        # Images that have had their turn; None when there are no more, or the call has ended.
        self._asked: SimpleQueue[AskedItem | None] = SimpleQueue()
        # Answers, and in the end None or why the call failed.
        self._answers: SimpleQueue[pb.SegmentStreamResponse | grpc.RpcError | None] = SimpleQueue()
        self._all_asked = False
        self._failure: BaseException | None = None
        self._closed = False

    def items(self) -> Generator[StreamItem, None, None]:
        """Make the call, and yield its items."""
        call = self._begin(self._requests())
        reader = threading.Thread(target=self._read_answers, args=(call,), name="fcnseg-stream", daemon=True)
        reader.start()
        try:
            while (item := self._asked.get()) is not None:
                answer = None if item.error else self._next_answer()
                self._slots.release()
                yield self._exchange.read_item(item, answer)
            if self._failure is not None:
                raise self._failure
            self._exchange.require_end(self._next_answer(), all_asked=self._all_asked)
        finally:
            self._closed = True
            self._slots.release()
            call.cancel()
            reader.join()

    def _requests(self) -> Iterator[pb.SegmentStreamRequest]:
        try:
            for position, image in enumerate(self._images_in_turn()):
                item, request = self._exchange.ask_item(position, image, self._query)
                self._asked.put(item)
                if request is not None:
                    yield request
            self._all_asked = True
        except GeneratorExit:  # gRPC lets go of it, since the call has ended
            raise
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller's thread
            self._failure = error
        finally:
            self._asked.put(None)

    def _images_in_turn(self) -> Iterator[StreamSource]:
        images = iter(self._images)
        while True:
            self._slots.acquire()
            if self._closed:
                return
            try:
                image = next(images)
            except StopIteration:
                return
            yield image

    def _read_answers(self, call: Iterable[pb.SegmentStreamResponse]) -> None:
        end = None
        try:
            for answer in call:
                self._answers.put(answer)
        except grpc.RpcError as error:
            end = error.with_traceback(None)  # it is the call itself, and would keep the stream and its images
        self._answers.put(end)
        self._asked.put(None)

    def _next_answer(self) -> pb.SegmentStreamResponse | None:
        try:
            answer = self._answers.get(timeout=self._exchange.timeout_s)
        except Empty:
            raise self._exchange.late() from None
        if isinstance(answer, grpc.RpcError):
            raise self._exchange.failure(answer) from answer
        return answer
