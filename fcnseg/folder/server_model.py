"""A model that a server holds, for a job."""

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
    """A model that a server holds; its images' files go there as they are, or their pixels where options change them.

    Args:
        client: The connection.
        model: The model's name, or NAME/VERSION; empty where the server holds exactly one.
        options: How the job is done.

    Attributes:
        label_map: What ids mean.
        at_a_time: Requests under way at a time.

    Raises:
        RequestError: The server holds no such model, or does not answer.
        UsageError: The server cannot be asked for a class whose scores are wanted, or numbers its classes otherwise.
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
        # The most probable classes are known only once all are.
        heatmaps = self.label_map.classes if pictures.top else pictures.heatmaps
        self._heatmaps = [self.label_map.word_for(info) for info in heatmaps]

    @property
    def name(self) -> str:
        """Its name at the server, and what it is."""
        model = self._model
        return f"{model.name} version {model.version}, {model.variant} of {model.architecture}"

    @property
    def at(self) -> str:
        """The device, which is the server's."""
        return f"the server's {self._model.device}"

    @property
    def identity(self) -> dict[str, Any]:
        """Name, version and the label map's hash."""
        return {
            "name": self._model.name,
            "version": self._model.version,
            "architecture": self._model.architecture,
            "variant": self._model.variant,
            "label_map_hash": self._model.label_map_hash,
        }

    @property
    def tile(self) -> str:
        """A server cuts no image."""
        return "none"

    @property
    def limits(self) -> ImageLimits:
        """The server's, but where the options have others or it tells none."""
        told, asked = self._model.image_limits, self._options.limits
        return told if asked == DEFAULT_LIMITS and told.max_bytes else asked

    def kind(self, image: NDArray[np.uint8]) -> object:
        """Every image goes alone."""
        return id(image)

    def held_bytes(self, height: int, width: int) -> int:
        """Return what an image and its answer, with the heatmaps that are asked for, take."""
        down, across = self._model.output_stride
        cells = math.ceil(height / down) * math.ceil(width / across)
        return answer_bytes(self.label_map, height * width, cells * len(self._heatmaps))

    def segment(self, loaded: Sequence[Loaded]) -> list[Outcome]:
        """Ask the server; where it has no room, ask again for some minutes."""
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
            except (ImageError, InvalidRequestError, RequestTimeoutError) as error:  # the first: beyond what is sent
                return error
            except RequestError as error:
                # The model failed on this image, or the image is beyond what a message may hold.
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
