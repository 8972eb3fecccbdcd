"""A real server on a free port, in a thread with an event loop of its own."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from fcnseg.engine import EngineOptions
from serving.registry import ModelRegistry
from serving.served_model import ModelConfig
from serving.server import Server, ServerConfig

CPU_CONFIG = ModelConfig("cpu", EngineOptions(threads=1))
_START_S = 60.0
_STOP_S = 30.0


class RunningServer:
    """A server that answers at `address`, and over HTTP at `http_address`, until it is stopped."""

    def __init__(self, registry: ModelRegistry, config: ServerConfig) -> None:
        self._registry = registry
        self._config = config
        self._started: Future[tuple[str, str | None, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), daemon=True)
        self._thread.start()
        self.address, self.http_address, self._loop, self._asked_to_stop = self._started.result(_START_S)

    def hold_up(self, released: threading.Event) -> None:
        """Keep the event loop from turning until it is released, a minute at most."""
        self._loop.call_soon_threadsafe(released.wait, 60)

    def begin_stop(self) -> None:
        """Ask for a graceful stop and return at once."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._asked_to_stop.set)

    def wait_stopped(self) -> None:
        """Return when the server has stopped."""
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            raise TimeoutError(f"the server did not stop within {_STOP_S} s")

    def stop(self) -> None:
        """Stop gracefully."""
        self.begin_stop()
        self.wait_stopped()

    async def _serve(self) -> None:
        server = Server(self._registry, self._config)
        asked_to_stop = asyncio.Event()
        try:
            address = await server.start()
            self._started.set_result((address, server.http_address, asyncio.get_running_loop(), asked_to_stop))
            await asked_to_stop.wait()
        except Exception as error:  # noqa: BLE001 - it belongs to the test's thread
            self._started.set_exception(error)
        finally:
            await server.stop()


@contextmanager
def running_server(
    models: Path | list[Path] | ModelRegistry, config: ServerConfig | None = None
) -> Iterator[RunningServer]:
    """Serve model files, or the models of a registry, on the CPU."""
    if isinstance(models, Path):
        models = [models]
    registry = ModelRegistry(models, CPU_CONFIG) if isinstance(models, list) else models
    server = RunningServer(registry, config or ServerConfig())
    try:
        yield server
    finally:
        server.stop()
