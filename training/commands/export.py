"""`fcnseg export`: a trained run becomes a model file."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnseg.commands.options import refuse_given
from fcnseg.errors import DatasetError, UsageError

if TYPE_CHECKING:
    from fcnseg.model_card import ModelCard
    from fcnseg.model_file import ModelInfo
    from training.data import Dataset
    from training.export import Store
    from training.precision import FilePrecision, Images
    from training.run import Run


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, metavar="MODEL.onnx", type=click.Path(path_type=Path), help="Model file to write."
)
@click.option(
    "--store",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Format of the stored weights; fp16 rounds them and halves the file; the net still computes in fp32.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Number format that the net computes in: fp16 for GPUs, int8 for CPUs with VNNI. Both are compared with fp32"
    " on the validation images, and the result goes into the model card.",
)
@click.option(
    "--data",
    metavar="DATA",
    type=click.Path(path_type=Path),
    help="Data set to calibrate int8 with and to measure on. [default: that of the run]",
)
@click.option(
    "--calibration-images",
    default=64,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of training images to calibrate int8 with.",
)
@click.option("--data-licence", metavar="TEXT", help="Licence of the training data, for the model card.")
def export(
    *,
    run: Path,
    output: Path,
    store: "Store",
    precision: "FilePrecision",
    data: Path | None,
    calibration_images: int,
    data_licence: str | None,
) -> None:
    """Write the best checkpoint of RUN (a run folder or a .ckpt file) as one self-describing ONNX file.

    The file is written only if onnxruntime gives the same result as PyTorch at several odd image sizes. Its model card
    (data, recipe, metrics, licence, limits, how to reproduce) is stored in it, and beside it as Markdown.

    \b
    Example: fcnseg export runs/camvid -o camvid.onnx
    """
    from rich.console import Console

    from fcnseg.files import require_model_place, require_place, write_text
    from fcnseg.model_card import describe_precision, to_markdown
    from training.card import make_card
    from training.contents import check_samples, tell_no_label
    from training.data import open_dataset
    from training.evaluation import require_same_classes
    from training.parity import HALF_TOLERANCE, PARITY_SIZES, TOLERANCE
    from training.run import open_run
    from training.run_folder import BEST, LAST

    card_path = output.with_suffix(".md")
    checkpoints = run / BEST, run / LAST
    require_model_place(output, run, *checkpoints)
    require_place(card_path, run, *checkpoints)
    if card_path.exists() and not output.exists():
        raise UsageError(f"{card_path} exists, and the model card would overwrite it; name another output")
    if precision == "fp32":
        refuse_given({"data"}, "{} is used only with --precision fp16 or int8; leave it out")
    if precision != "int8":
        refuse_given({"calibration_images"}, "{} is used only with --precision int8; leave it out")
    trained = open_run(run)
    card = make_card(
        trained,
        output.name,
        data_licence=data_licence,
        store=store,
        precision=precision,
        calibration_images=calibration_images if precision == "int8" else None,
    )
    with Console(stderr=True).status("exporting and checking against onnxruntime"):
        if precision == "fp32":
            info = _write(trained, output, card, store)
        else:
            if store != "fp32":
                raise UsageError(f"--store {store} and --precision {precision} exclude each other; leave --store out")
            dataset = open_dataset(data or Path(trained.record.config.data), ("train", "val"))
            require_same_classes(trained.record.label_map, dataset.label_map)
            if not sum(check_samples(dataset.split("val"), dataset.label_map).class_pixels):
                no_label = tell_no_label("val", dataset.label_map.ignore_id)
                raise DatasetError(f"{no_label}; name labelled data by --data")
            info = _write_measured(trained, output, card, precision, dataset, calibration_images)
        if info.card is not None:
            write_text(card_path, to_markdown(info, info.card, output.stem))
    sizes = ", ".join(f"{height}x{width}" for height, width in PARITY_SIZES)
    click.echo(
        f"parity with PyTorch at {sizes}: {info.parity[-1].relative_error:.1e} of the scores' range"
        f" (must be below {HALF_TOLERANCE if precision == 'fp16' else TOLERANCE:.0e})"
        + (", before it was made int8" if precision == "int8" else "")
    )
    if info.card is not None and info.card.precision is not None:
        click.echo(describe_precision(precision, info.card.precision))
    click.echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB, {info.variant} of {info.architecture})")
    click.echo(f"model card: {card_path}")


def _write(
    run: "Run",
    output: Path,
    card: "ModelCard",
    store: "Store" = "fp32",
    precision: "FilePrecision" = "fp32",
    calibration: "Images" = (),
) -> "ModelInfo":
    from training.export import export as write_model_file

    return write_model_file(
        run.model,
        run.record.label_map,
        output,
        metrics=run.record.metrics,
        data_fingerprint=run.record.data_fingerprint,
        card=card,
        store=store,
        precision=precision,
        calibration=calibration,
    )


def _write_measured(
    run: "Run", output: Path, card: "ModelCard", precision: "FilePrecision", dataset: "Dataset", calibration_images: int
) -> "ModelInfo":
    """Write the file, once it is measured beside the same model in fp32."""
    import tempfile
    from dataclasses import replace

    from training.export import replace_card
    from training.precision import calibration_images as read_images
    from training.precision import compare

    with tempfile.TemporaryDirectory(prefix="fcnseg-") as folder:
        file, reference = Path(folder) / "reduced.onnx", Path(folder) / "fp32.onnx"
        images = read_images(dataset.split("train"), calibration_images) if precision == "int8" else ()
        _write(run, file, card, precision=precision, calibration=images)
        _write(run, reference, card)
        device = "cpu" if precision == "int8" else "auto"  # which processors multiply them fast
        record = compare(file, reference, dataset.split("val"), dataset.label_map.ignore_id, device)
        return replace_card(file, replace(card, precision=record), output)
