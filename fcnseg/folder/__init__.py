"""Segmenting folders: every image of a list, however long, to a mask in a mirrored tree.

`segment_folder` is the door. A job is planned (`inputs`, `names`, `plan`), takes its place (`job`, `manifest`), goes
through three stages (`pipeline`, `segment`) with a model that is here or at a server (`models`), and is summed up
(`totals`, `report`, `coco`).
"""

from fcnseg.folder.mask_files import MaskFormat
from fcnseg.folder.models import LocalModel, ServerModel
from fcnseg.folder.options import FolderOptions
from fcnseg.folder.plan import Plan, PlannedImage, plan
from fcnseg.folder.segment import Job, SegmentedImage, segment_folder

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
