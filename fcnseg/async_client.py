"""The gRPC client for asyncio; images are read, and answers decoded, beside the event loop."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, suppress
from contextvars import copy_context
from itertools import islice
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import grpc
from google.protobuf.wrappers_pb2 import Int32Value

from fcnseg.access import Access
from fcnseg.errors import RequestError, UsageError
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


class AsyncClient:
    """A client of a server, or of several alike, made and used in one running event loop.

    >>> async with AsyncClient("127.0.0.1:50051") as client:   # doctest: +SKIP
    ...     (await client.segment("photo.jpg")).class_map.shape
    (480, 640)

    Arguments and errors are those of `Client`. A task that is cancelled cancels its request.

    Raises:
        UsageError: As `Client`, or no event loop runs.
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
        loop = _running_loop()
        options = self._exchange.channel_options
        credentials = access.tls and access.tls.credentials()
        self._channels = [
            grpc.aio.secure_channel(server, credentials, options)
            if credentials
            else grpc.aio.insecure_channel(server, options)
            for _ in range(connections)
        ]
        self._stubs = itertools.cycle([SegmentationServiceStub(channel) for channel in self._channels])
        first = self._channels[0]
        self._admin = ModelAdminServiceStub(first)
        self._health: Callable[..., Awaitable[Int32Value]] = first.unary_unary(CHECK, None, Int32Value.FromString)
        self._loop = loop
        self._closed = False

    def __repr__(self) -> str:
        """Name the server, and no token."""
        return f"AsyncClient({self._exchange.server!r})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        self._exchange.refuse_to_move()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; requests under way are cancelled."""
        self._closed = True
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def segment(
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
        """Segment one image; as `Client.segment`."""
        wanted = SegmentQuery(model, version, encoding, heatmaps, regions, confidence, overlay, classes)
        asked, request = await asyncio.to_thread(self._exchange.ask, image, wanted)
        response: pb.SegmentResponse = await self._call(next(self._stubs).Segment, request, asked)
        return await asyncio.to_thread(self._exchange.read, asked, response)

    def segment_stream(
        self,
        images: AsyncIterable[StreamSource] | Iterable[StreamSource],
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
    ) -> AsyncGenerator[StreamItem, None]:
        """Segment images one after another; as `Client.segment_stream`.

        A plain iterable is read in a thread of its own; where it blocks, the program waits for it at its end. Use
        `contextlib.aclosing` around a loop that may be left early: it ends the stream at once.
        """
        wanted = SegmentQuery(model, version, encoding, heatmaps, regions, confidence, overlay, classes)
        require_stream(images, in_flight)
        self._exchange.require_open(closed=self._closed)
        return _Stream(self._exchange, self._next_stub, images, wanted, in_flight).items()

    async def list_models(self) -> tuple[RemoteModel, ...]:
        """Return the models that the server holds; as `Client.list_models`."""
        response: pb.ListModelsResponse = await self._call(next(self._stubs).ListModels, pb.ListModelsRequest())
        return read_models(response.models)

    async def get_model(self, model: str = "", version: str = "") -> RemoteModel:
        """Return one model's description; as `Client.get_model`."""
        require_model(model, version)
        request = pb.GetModelRequest(model_name=model, model_version=version)
        response: pb.GetModelResponse = await self._call(next(self._stubs).GetModel, request)
        return read_model(response.model)

    async def load_model(self, model: str) -> tuple[RemoteModel, ...]:
        """Load a model as the server's repository holds it now; as `Client.load_model`."""
        require_model(model)
        request = admin_pb.LoadModelRequest(model_name=model)
        response: admin_pb.LoadModelResponse = await self._call(self._admin.LoadModel, request)
        return read_models(response.models)

    async def unload_model(self, model: str, version: str = "") -> tuple[RemoteModel, ...]:
        """Stop serving a model until it is loaded again; as `Client.unload_model`."""
        require_model(model, version)
        request = admin_pb.UnloadModelRequest(model_name=model, model_version=version)
        response: admin_pb.UnloadModelResponse = await self._call(self._admin.UnloadModel, request)
        return read_models(response.models)

    async def reload_model(self, model: str) -> tuple[RemoteModel, ...]:
        """Open a served model again, even if its files have not changed; as `Client.reload_model`."""
        require_model(model)
        request = admin_pb.ReloadModelRequest(model_name=model)
        response: admin_pb.ReloadModelResponse = await self._call(self._admin.ReloadModel, request)
        return read_models(response.models)

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the server is ready; as `Client.wait_until_ready`."""
        readiness = self._exchange.readiness(timeout_s)
        while True:
            try:
                if readiness.is_told_by(await self._call(self._health, WHOLE_SERVER, within=readiness)):
                    return
            except RequestError as error:
                readiness.require_more(error)
            await asyncio.sleep(min(PAUSE_S, readiness.left_s))

    async def _call(
        self,
        method: Callable[..., Awaitable[_Response]],
        request: object,
        asked: Asked | None = None,
        within: Readiness | None = None,
    ) -> _Response:
        """Call a method; with `within`, wait for a server that does not answer yet for as long as that says."""
        self._require_usable()
        timeout_s = self._exchange.timeout_s if within is None else within.timeout_s
        left_s = timeout_s if within is None else within.left_s
        try:
            return await method(
                request, timeout=left_s, metadata=self._exchange.metadata, wait_for_ready=within is not None
            )
        except grpc.RpcError as error:
            raise self._exchange.failure(error, asked, timeout_s) from error
        except grpc.aio.UsageError:  # another task has closed the channel in the meantime
            self._exchange.require_open(closed=self._closed)
            raise
        except asyncio.CancelledError:
            if _task_is_cancelled():
                raise
            raise self._exchange.cancelled() from None

    def _next_stub(self) -> SegmentationServiceStub:
        self._require_usable()
        return next(self._stubs)

    def _require_usable(self) -> None:
        self._exchange.require_open(closed=self._closed)
        if _running_loop() is not self._loop:
            raise UsageError(
                f"the client of server {self._exchange.server} was made in another event loop; make one in each, such"
                " as in the coroutine that asyncio.run is given"
            )


class _Stream:
    """One stream: a task takes images and sends them, another reads answers, the caller's puts them in order.

    The reader is there for callers that take their time: a server leaves a client that reads nothing for a minute.
    """

    def __init__(
        self,
        exchange: Exchange,
        stub: Callable[[], SegmentationServiceStub],
        images: AsyncIterable[StreamSource] | Iterable[StreamSource],
        query: SegmentQuery,
        in_flight: int,
    ) -> None:
        self._exchange = exchange
        self._stub = stub
        self._images = images
        self._query = query
        self._slots = asyncio.Semaphore(in_flight)
        # Images that have had their turn; None when there are no more, or the call has ended.
        self._asked: asyncio.Queue[AskedItem | None] = asyncio.Queue()
        # Answers, and in the end None or why the call failed.
        self._answers: asyncio.Queue[pb.SegmentStreamResponse | grpc.RpcError | RequestError | None] = asyncio.Queue()
        self._all_asked = False
        self._failure: Exception | asyncio.CancelledError | None = None

    async def items(self) -> AsyncGenerator[StreamItem, None]:
        """Make the call, and yield its items."""
        call = self._stub().SegmentStream(metadata=self._exchange.metadata)
        sender, reader = asyncio.create_task(self._send(call)), asyncio.create_task(self._read_answers(call))
        call.add_done_callback(lambda _: self._asked.put_nowait(None))
        # Nothing is written once the call has ended: gRPC would put the failure of that write, INTERNAL, in the place
        # of what the server said (github.com/grpc/grpc/issues/36066).
        call.add_done_callback(lambda _: sender.cancel())
        try:
            while (item := await self._asked.get()) is not None:
                answer = None if item.error else await self._next_answer()
                self._slots.release()
                yield await asyncio.to_thread(self._exchange.read_item, item, answer)
            if self._failure is not None:
                raise self._failure
            self._exchange.require_end(await self._next_answer(), all_asked=self._all_asked)
        finally:
            sender.cancel()
            reader.cancel()
            call.cancel()
            await asyncio.wait([sender, reader])

    async def _send(self, call: Any) -> None:
        try:
            position = 0
            async with aclosing(self._images_in_turn()) as images:
                async for image in images:
                    item, request = await asyncio.to_thread(self._exchange.ask_item, position, image, self._query)
                    position += 1
                    self._asked.put_nowait(item)
                    if request is not None and not await _write(call, request):
                        return
            self._all_asked = True
            await _end_writing(call)
        except asyncio.CancelledError as error:
            if _task_is_cancelled():
                raise
            self._failure = error  # what the images wait for was cancelled
        except Exception as error:  # noqa: BLE001 - it belongs to the caller
            self._failure = error
        finally:
            self._asked.put_nowait(None)

    async def _images_in_turn(self) -> AsyncGenerator[StreamSource, None]:
        async with AsyncExitStack() as stack:
            images = self._images
            if not isinstance(images, AsyncIterable):
                images = await stack.enter_async_context(aclosing(_in_thread(images)))
            iterator = aiter(images)
            while True:
                await self._slots.acquire()
                try:
                    image = await anext(iterator)
                except StopAsyncIteration:
                    return
                yield image

    async def _read_answers(self, call: Any) -> None:
        end: grpc.RpcError | RequestError | None = None
        try:
            while (answer := await call.read()) is not grpc.aio.EOF:
                self._answers.put_nowait(answer)
        except grpc.RpcError as error:
            end = error
        except asyncio.CancelledError:
            if _task_is_cancelled():
                raise
            end = self._exchange.cancelled()
        self._answers.put_nowait(end)

    async def _next_answer(self) -> pb.SegmentStreamResponse | None:
        try:
            async with asyncio.timeout(self._exchange.timeout_s):
                answer = await self._answers.get()
        except TimeoutError:
            raise self._exchange.late() from None
        if isinstance(answer, RequestError):
            raise answer
        if isinstance(answer, grpc.RpcError):
            raise self._exchange.failure(answer) from answer
        return answer


def _running_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that runs.

    Raises:
        UsageError: There is none.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise UsageError(
            "an AsyncClient is made where an event loop runs, such as in the coroutine that asyncio.run is given;"
            " elsewhere use Client"
        ) from error


def _task_is_cancelled() -> bool:
    """Tell a task that is cancelled from a call that is, since its client was closed: gRPC raises the same for both."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _write(call: Any, request: pb.SegmentStreamRequest) -> bool:
    """Send a request; return False where the call has ended, and whoever reads its answers learns why."""
    try:
        await call.write(request)
    except (grpc.RpcError, asyncio.InvalidStateError):
        return False
    return True


async def _end_writing(call: Any) -> None:
    """Tell that no more comes, unless the call has ended: whoever reads its answers learns why."""
    with suppress(grpc.RpcError, asyncio.InvalidStateError, grpc.aio.InternalError):
        await call.done_writing()


async def _in_thread(images: Iterable[StreamSource]) -> AsyncGenerator[StreamSource, None]:
    """Read images in a thread of their own: where they block, they would take asyncio's own from all others."""
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1, "fcnseg-images")
    context = copy_context()
    try:
        iterator = await loop.run_in_executor(thread, context.run, iter, images)
        while taken := await loop.run_in_executor(thread, context.run, tuple, islice(iterator, 1)):
            yield taken[0]
    finally:
        thread.shutdown(wait=False)
