"""The nets that serving is measured with."""

from pathlib import Path

from fcnseg.types import LabelMap
from training.export import export
from training.model import build_model

SMALL = Path(__file__).parent.parent / "results" / "camvid-fcn8s.onnx"


def build(architecture: str, folder: Path) -> Path:
    """Export an FCN-8s of 21 classes with random weights: what it costs does not depend on them."""
    path = folder / f"{architecture}.onnx"
    names = [f"class {i}" for i in range(21)]
    export(build_model(architecture, "fcn8s", len(names), pretrained=False), LabelMap.from_names(names), path)
    return path
