"""How much faster is a model file of 8-bit integers, and what does it get wrong?

Run it: python benchmarks/int8.py [--net ARCH ...] [--trained MODEL DATA ...] [--rounds N] [--seconds S] [--threads N]
        [--json FILE]

Model files in 32 bits, and what `fcnseg export --precision int8` makes of them, take one 480x360 photograph by
session.run, in turns, with the same threads and settings. Nets of --net are FCN-8s of 21 classes with random weights,
calibrated on the photograph: they tell the time alone. A model file of --trained is calibrated on 64 training images of
its data folder, and has its mean IoU on the validation images measured, in 32 bits and in 8.

Processors multiply 8-bit integers fast where they have the instructions for it (VNNI, AMX; on Arm dotprod, i8mm); the
note below the table tells which of them this one has.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from loop import HEIGHT, WIDTH, photograph
from nets import build
from onnx import TensorProto, numpy_helper
from reporting import Report, Spread, add_json_option, in_turns
from session import open_session

from fcnseg.cores import usable_cores
from fcnseg.model_card import PrecisionRecord
from fcnseg.model_file import read_model_info
from training.data import open_dataset
from training.precision import Images, calibration_images, compare, quantise

NETS = ("mobilenet_v2", "squeezenet1_1", "resnet50", "vgg16")
INSTRUCTIONS = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
CALIBRATION_IMAGES = 64  # as `fcnseg export` takes by default
COLUMNS = ("net", "fp32, ms", "int8, ms", "fp32 / int8", "mean IoU in fp32", "in int8", "lost")


def times(file: Path, quantised: Path, arguments: argparse.Namespace) -> tuple[Spread, Spread, Spread]:
    """Milliseconds in 32 bits and in 8, and their ratio."""
    feed = {"image": photograph()[None]}
    sessions = [open_session(path, arguments.threads) for path in (file, quantised)]
    sides = {str(i): partial(session.run, ["class_map"], feed) for i, session in enumerate(sessions)}
    fp32, int8 = in_turns(sides, arguments.rounds, arguments.seconds).values()
    return fp32.scaled(1000), int8.scaled(1000), fp32.over(int8)


def quantise_into(folder: Path, file: Path, images: Images) -> Path:
    path = folder / f"{file.stem}-int8.onnx"
    onnx.save(quantise(file, images), path)
    return path


def in_floats(file: Path, folder: Path) -> Path:
    """A file whose weights lie in it as 32-bit floats, as what is quantised has them, with `--store fp16` undone."""
    model = onnx.load(file)
    halves = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    casts = [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in halves]
    for node in casts:
        values = numpy_helper.to_array(halves[node.input[0]]).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        model.graph.node.remove(node)
    for name in {node.input[0] for node in casts}:
        model.graph.initializer.remove(halves[name])
    path = folder / file.name
    onnx.save(model, path)
    return path


def compare_on(data: Path, file: Path, folder: Path) -> tuple[Path, PrecisionRecord]:
    """Quantise a trained model file, and measure both on a data folder's validation images."""
    dataset = open_dataset(data, ("train", "val"))
    quantised = quantise_into(folder, file, calibration_images(dataset.splits["train"], CALIBRATION_IMAGES))
    ignored = read_model_info(file).label_map.ignore_id
    return quantised, compare(quantised, file, dataset.splits["val"], ignored, "cpu")


def instructions() -> str:
    """Which of the instructions for 8-bit integers the processor has."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return ", ".join(name for name in INSTRUCTIONS if name in flags) or "none of them"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", nargs="*", default=NETS, metavar="ARCH", help=", ".join(NETS))
    parser.add_argument("--trained", nargs=2, action="append", default=[], type=Path, metavar=("MODEL", "DATA"))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each side in each round (1)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="within an operator (cores)")
    add_json_option(parser)
    arguments = parser.parse_args()
    report = Report(arguments.json)
    note = f"Of the instructions {', '.join(INSTRUCTIONS)} the processor has {instructions()}."
    table = report.table("int8", f"Milliseconds of session.run, {WIDTH}x{HEIGHT}", COLUMNS, note)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for given, data in arguments.trained:
            file = in_floats(given, folder)
            quantised, record = compare_on(data, file, folder)
            ious = [record.fp32_mean_iou, record.mean_iou, record.fp32_mean_iou - record.mean_iou]
            name = f"{file.stem}: {read_model_info(file).architecture}"
            table.add(name, *times(file, quantised, arguments), *(f"{iou:.4f}" for iou in ious))
        for net in arguments.net:
            file = build(net, folder)
            quantised = quantise_into(folder, file, [photograph()])
            table.add(net, *times(file, quantised, arguments), None, None, None)
    report.write()


if __name__ == "__main__":
    main()
