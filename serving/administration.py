"""Changing what is served on request: the one way, for the services of both protocols."""

import asyncio
import logging

from fcnseg.errors import FcnsegError, ModelNotFoundError
from serving.errors import InvalidFieldError, NotOpenedError, StoppingError, quote
from serving.registry import ModelRegistry

_log = logging.getLogger(__name__)


class Administration:
    """Loads and unloads models, beside the event loop.

    Args:
        registry: The models.
    """

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    async def load(self, name: str, *, anew: bool = False) -> None:
        """Serve what the repository holds of a model now.

        Args:
            name: The model.
            anew: Whether it must be served already, and files that have not changed are opened again too.

        Raises:
            InvalidFieldError: No model is named.
            ModelNotFoundError: There is no such model.
            NotOpenedError: One of its files cannot be opened; what was served still is.
            StoppingError: The server is stopping.
        """
        _require_name(name)
        problem = await asyncio.to_thread(self._try_to_load, name, anew=anew)
        if problem is not None:
            raise NotOpenedError(f"model {quote(name)} stays as it was: {problem}")

    async def unload(self, name: str, version: str = "") -> None:
        """Take a model, or one version of it, from service.

        Raises:
            InvalidFieldError: No model is named.
            ModelNotFoundError: There is no such model or version.
        """
        _require_name(name)
        await asyncio.to_thread(self._registry.unload, name, version)

    def _try_to_load(self, name: str, *, anew: bool) -> str | None:
        """Load a model, and return why it cannot be opened; the error ends here, and what its frames hold with it."""
        try:
            (self._registry.reload if anew else self._registry.load)(name)
        except (ModelNotFoundError, StoppingError):
            raise
        except FcnsegError as error:
            _log.warning("model %r stays as it was: %s", name, error)
            return self._tell(name, str(error))
        return None

    def _tell(self, name: str, message: str) -> str:
        """Return why a model cannot be opened, without where the server keeps its files."""
        try:
            sources = self._registry.sources_of(name)
        except FcnsegError:
            sources = []
        for source in sources:
            message = message.replace(str(source.path), f"version {source.version}")
        return "the server's log tells why" if "/" in message or "\\" in message else message


def _require_name(name: str) -> None:
    if not name:
        raise InvalidFieldError("model_name", "the request names no model; give model_name")
