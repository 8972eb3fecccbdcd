"""`fcnseg export`: a trained run becomes a model file."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnseg.errors import UsageError

if TYPE_CHECKING:
    from training.export import Store


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, metavar="MODEL.onnx", type=click.Path(path_type=Path), help="File to write."
)
@click.option(
    "--store",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="How weights are stored; fp16 rounds them and halves the file. Computed with as 32-bit floats in either case.",
)
@click.option("--data-licence", metavar="TEXT", help="Licence of the training data, for the model card.")
def export(run: Path, output: Path, store: "Store", data_licence: str | None) -> None:
    """Write the best checkpoint of RUN (a run folder or a .ckpt file) as one self-describing ONNX file.

    The file appears only if onnxruntime gives PyTorch's answer at several odd sizes. Its model card (data, recipe,
    metrics, licence, limits, how to reproduce) is in it, and beside it as Markdown.

    \b
    Example: fcnseg export runs/camvid -o camvid.onnx
    """
    from rich.console import Console

    from fcnseg.files import require_place, write_text
    from fcnseg.model_card import to_markdown
    from training.card import make_card
    from training.export import PARITY_SIZES, TOLERANCE
    from training.export import export as write_model_file
    from training.run import open_run

    card_path = output.with_suffix(".md")
    if card_path == output:
        raise UsageError(f"output {output} has the name of its model card; end the model's name in .onnx")
    for path in (output, card_path):
        require_place(path)
    trained = open_run(run)
    card = make_card(trained, output.name, data_licence=data_licence, store=store)
    with Console(stderr=True).status("exporting and checking against onnxruntime"):
        info = write_model_file(
            trained.model,
            trained.record.label_map,
            output,
            metrics=trained.record.metrics,
            data_fingerprint=trained.record.data_fingerprint,
            card=card,
            store=store,
        )
        write_text(card_path, to_markdown(info, card, output.stem))
    sizes = ", ".join(f"{height}x{width}" for height, width in PARITY_SIZES)
    click.echo(
        f"parity with PyTorch at {sizes}: {info.parity[-1].relative_error:.1e} of the scores' range"
        f" (must be below {TOLERANCE:.0e})"
    )
    click.echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB, {info.variant} of {info.architecture})")
    click.echo(f"model card: {card_path}")
