"""Segment folders: write a mask for every image of a list of any length, in a mirrored folder tree.

`segment_folder` is the entry point. A job is planned (`inputs`, `names`, `plan`), claims its output folder (`job`,
`manifest`), passes images through three stages (`pipeline`, `worker`) with a model (`models`) that runs in this process
(`local_model`) or on a server (`server_model`), and is summarised (`totals`, `report`, `coco`).
"""

from fcnseg.folder.local_model import LocalModel
from fcnseg.folder.mask_files import MaskFormat
from fcnseg.folder.options import FolderOptions
from fcnseg.folder.plan import Plan, PlannedImage, plan
from fcnseg.folder.segment import Job, segment_folder
from fcnseg.folder.server_model import ServerModel
from fcnseg.folder.worker import SegmentedImage

__all__ = [
    "FolderOptions",
    "Job",
    "LocalModel",
    "MaskFormat",
    "Plan",
    "PlannedImage",
    "SegmentedImage",
    "ServerModel",
    "plan",
    "segment_folder",
]
