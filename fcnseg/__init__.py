"""fcnseg: one path from an image classifier to a segmentation mask over gRPC.

>>> import fcnseg                                                       # doctest: +SKIP
>>> fcnseg.load("model.onnx").segment("photo.jpg").class_map.shape      # doctest: +SKIP
(480, 640)
"""

from fcnseg.client import Client
from fcnseg.errors import FcnsegError
from fcnseg.model_file import ModelInfo
from fcnseg.regions import Box, Region, RegionQuery, find_regions
from fcnseg.segmenter import Segmenter, load
from fcnseg.types import ClassArea, ClassInfo, LabelMap, Segmentation

__all__ = [
    "Box",
    "ClassArea",
    "ClassInfo",
    "Client",
    "FcnsegError",
    "LabelMap",
    "ModelInfo",
    "Region",
    "RegionQuery",
    "Segmentation",
    "Segmenter",
    "find_regions",
    "load",
]
__version__ = "0.1.0"
