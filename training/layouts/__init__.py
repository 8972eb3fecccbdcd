"""Supported layouts of data sets, one per module, and their detection."""

from pathlib import Path

from fcnseg.errors import DatasetError
from training.layouts.cityscapes import CITYSCAPES
from training.layouts.coco import COCO
from training.layouts.folders import FOLDERS
from training.layouts.listing import Layout
from training.layouts.segnet import SEGNET
from training.layouts.voc import VOC

LAYOUTS = (SEGNET, FOLDERS, VOC, CITYSCAPES, COCO)
_SHOWN = 8


def find_layout(root: Path) -> Layout:
    """Return the layout of a folder.

    Raises:
        DatasetError: The folder fits no layout or several; the message says what was found and describes each layout.
    """
    fitting = _fitting(root)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        which = " and ".join(f"{layout.name} ({layout.shape})" for layout in fitting)
        raise DatasetError(f"{root} has the layouts of {which} at once; move all but one into folders of their own")
    entries = sorted(f"{path.name}/" if path.is_dir() else path.name for path in root.iterdir())
    found = " ".join(entries[:_SHOWN]) + (" ..." if len(entries) > _SHOWN else "") if entries else "nothing"
    below = [path for path in sorted(root.iterdir())[:_SHOWN] if path.is_dir() and _fitting(path)]
    remedy = f"did you mean {below[0]}?" if below else "bring the data into one of these layouts"
    shapes = "; ".join(f"{layout.name}: {layout.shape}" for layout in LAYOUTS)
    raise DatasetError(f"{root} holds {found}, which is none of the layouts that are read; {remedy} ({shapes})")


def _fitting(root: Path) -> list[Layout]:
    return [layout for layout in LAYOUTS if layout.fits(root)]
