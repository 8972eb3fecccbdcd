"""fcnseg: one path from an image classifier to a segmentation mask over gRPC.

>>> import fcnseg                                                       # doctest: +SKIP
>>> fcnseg.load("model.onnx").segment("photo.jpg").class_map.shape      # doctest: +SKIP
(480, 640)
"""

import fcnseg.environment  # noqa: F401 - before all else
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
