"""Segmenting folders: every image of a list, however long, to a mask in a mirrored tree.

`segment_folder` is the door. A job is planned (`inputs`, `names`, `plan`), takes its place (`job`, `manifest`), goes
through three stages (`pipeline`, `worker`) with a model (`models`) that is here (`local_model`) or at a server
(`server_model`), and is summed up (`totals`, `report`, `coco`).
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
