"""A job's model that runs on a server."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnseg.client import Client
from fcnseg.errors import (
    ImageError,
    InvalidRequestError,
    RequestError,
    RequestTimeoutError,
    ServerOverloadedError,
    UsageError,
)
from fcnseg.folder.answers import RemoteAnswer
from fcnseg.folder.models import Loaded, Outcome
from fcnseg.folder.options import FolderOptions
from fcnseg.images import DEFAULT_LIMITS, ImageLimits
from fcnseg.masks import Encoding
from fcnseg.types import LabelMap, answer_bytes

_PATIENCE_S = 600.0
_LONGEST_PAUSE_S = 5.0


class ServerModel:
    """A model on a server, which is sent image files unchanged, or decoded pixels if an option changes them.

    Args:
        client: The connection.
        model: The model's name, or NAME/VERSION; may be empty if the server holds exactly one.
        options: The job's options.

    Attributes:
        label_map: What the ids mean.
        at_a_time: Number of concurrent requests.

    Raises:
        RequestError: The server holds no such model, or does not answer.
        UsageError: A class whose scores are wanted cannot be named in a request, or the server's class ids are not 0 to
            K - 1.
    """

    remote = True
    batch = 1

    def __init__(self, client: Client, model: str, options: FolderOptions) -> None:
        name, _, version = model.partition("/")
        self._client = client
        self._model = client.get_model(name, version)
        self._options = options
        self.at_a_time = options.in_flight
        try:
            self.label_map = LabelMap(self._model.classes)
        except ValueError as error:
            raise UsageError(f"the server's model {self._model.name!r} cannot be used: {error}") from error
        pictures = options.pictures(self.label_map)
        # The most probable classes can only be found from the heatmaps of all classes.
        heatmaps = self.label_map.classes if pictures.top else pictures.heatmaps
        self._heatmaps = [self.label_map.word_for(info) for info in heatmaps]

    @property
    def name(self) -> str:
        """The model's name and version on the server, variant and architecture."""
        model = self._model
        return f"{model.name} version {model.version}, {model.variant} of {model.architecture}"

    @property
    def at(self) -> str:
        """The device, which is the server's."""
        return f"the server's {self._model.device}"

    @property
    def identity(self) -> dict[str, Any]:
        """Name, version, architecture, variant and label map hash."""
        return {
            "name": self._model.name,
            "version": self._model.version,
            "architecture": self._model.architecture,
            "variant": self._model.variant,
            "label_map_hash": self._model.label_map_hash,
        }

    @property
    def tile(self) -> str:
        """Always `none`: a server does not tile images."""
        return "none"

    @property
    def limits(self) -> ImageLimits:
        """The server's limits, unless the options set others or the server states none."""
        told, asked = self._model.image_limits, self._options.limits
        return told if asked == DEFAULT_LIMITS and told.max_bytes else asked

    def kind(self, image: NDArray[np.uint8]) -> object:
        """Return a unique key: every image is sent alone."""
        return id(image)

    def held_bytes(self, height: int, width: int) -> int:
        """Return the bytes that an image and its answer, with the heatmaps asked for, take."""
        down, across = self._model.output_stride
        cells = math.ceil(height / down) * math.ceil(width / across)
        return answer_bytes(self.label_map, height * width, cells * len(self._heatmaps))

    def segment(self, loaded: Sequence[Loaded]) -> list[Outcome]:
        """Ask the server; while it is overloaded, ask again for some minutes."""
        return [self._ask(item) for item in loaded]

    def _ask(self, item: Loaded) -> Outcome:
        options = self._options
        source = item.data if item.data is not None else item.image
        if source is None:
            raise ValueError("an image that could not be read was sent on")
        end = time.monotonic() + _PATIENCE_S
        while True:
            item.require_time()
            try:
                answer = self._client.segment(
                    source,
                    model=self._model.name,
                    version=self._model.version,
                    encoding=Encoding.PNG,
                    heatmaps=self._heatmaps,
                    regions=options.regions,
                    confidence=options.confidence,
                )
            except ServerOverloadedError as error:
                pause = min(error.retry_after_s or 1.0, _LONGEST_PAUSE_S)
                if time.monotonic() + pause >= end:
                    raise
                item.ended.wait(pause)
                continue
            except (ImageError, InvalidRequestError, RequestTimeoutError) as error:  # ImageError: too large to send
                return error
            except RequestError as error:
                # The model failed on this image, or the image is too large for a message.
                if error.code in {"INTERNAL", "UNKNOWN", "RESOURCE_EXHAUSTED"}:
                    return error
                raise
            if answer.label_map_hash != self._model.label_map_hash:
                raise UsageError(
                    f"the classes of the server's model {self._model.name!r} changed during the job; segment into"
                    " another folder"
                )
            spent = answer.timings
            timings_ms = {
                "decode": spent.decode_ms,
                "queue": spent.queue_ms,
                "infer": spent.infer_ms,
                "encode": spent.encode_ms,
                "total": spent.total_ms,
            }
            return RemoteAnswer(answer, self.label_map, timings_ms)
