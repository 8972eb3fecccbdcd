"""fcnseg: one path from an image classifier to a segmentation mask over gRPC.

>>> import fcnseg                                                       # doctest: +SKIP
>>> fcnseg.load("model.onnx").segment("photo.jpg").class_map.shape      # doctest: +SKIP
(480, 640)
"""

import importlib.util
from typing import TYPE_CHECKING, Any

import fcnseg.environment  # noqa: F401 - must be imported first

if TYPE_CHECKING:
    from fcnseg.async_client import AsyncClient
    from fcnseg.client import Client
    from fcnseg.errors import FcnsegError
    from fcnseg.folder import FolderOptions, MaskFormat, SegmentedImage, segment_folder
    from fcnseg.masks import Encoding
    from fcnseg.model_file import ModelInfo
    from fcnseg.query import OverlayQuery
    from fcnseg.regions import Box, Region, RegionQuery, find_regions
    from fcnseg.remote import RemoteModel, RemoteSegmentation, StreamItem
    from fcnseg.segmenter import Segmenter, load
    from fcnseg.tls import ClientTls
    from fcnseg.types import ClassArea, ClassInfo, LabelMap, Segmentation

__all__ = [
    "AsyncClient",
    "Box",
    "ClassArea",
    "ClassInfo",
    "Client",
    "ClientTls",
    "Encoding",
    "FcnsegError",
    "FolderOptions",
    "LabelMap",
    "MaskFormat",
    "ModelInfo",
    "OverlayQuery",
    "Region",
    "RegionQuery",
    "RemoteModel",
    "RemoteSegmentation",
    "Segmentation",
    "SegmentedImage",
    "Segmenter",
    "StreamItem",
    "find_regions",
    "load",
    "segment_folder",
]
__version__ = "0.1.0"
_MODULES = {
    "AsyncClient": "async_client",
    "Box": "regions",
    "ClassArea": "types",
    "ClassInfo": "types",
    "Client": "client",
    "ClientTls": "tls",
    "Encoding": "masks",
    "FcnsegError": "errors",
    "FolderOptions": "folder",
    "LabelMap": "types",
    "MaskFormat": "folder",
    "ModelInfo": "model_file",
    "OverlayQuery": "query",
    "Region": "regions",
    "RegionQuery": "regions",
    "RemoteModel": "remote",
    "RemoteSegmentation": "remote",
    "Segmentation": "types",
    "SegmentedImage": "folder",
    "Segmenter": "segmenter",
    "StreamItem": "remote",
    "find_regions": "regions",
    "load": "segmenter",
    "segment_folder": "folder",
}


if not TYPE_CHECKING:  # with a module `__getattr__`, a type checker would accept any name

    def __getattr__(name: str) -> Any:
        """Import a name or a module on first use, so that a command starts without NumPy, gRPC and ONNX Runtime."""
        if name in _MODULES:
            return getattr(importlib.import_module(f"fcnseg.{_MODULES[name]}"), name)
        if not name.startswith("_") and importlib.util.find_spec(f"fcnseg.{name}"):
            return importlib.import_module(f"fcnseg.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
