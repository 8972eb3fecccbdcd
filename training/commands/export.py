"""`fcnseg export`: a trained run becomes a model file."""

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, metavar="MODEL.onnx", type=click.Path(path_type=Path), help="File to write."
)
def export(run: Path, output: Path) -> None:
    """Write the best checkpoint of RUN (a run folder or a .ckpt file) as one self-describing ONNX file.

    The file appears only if onnxruntime gives PyTorch's answer at several odd sizes.

    \b
    Example: fcnseg export runs/camvid -o camvid.onnx
    """
    from rich.console import Console

    from fcnseg.files import require_place
    from training.export import PARITY_SIZES, TOLERANCE
    from training.export import export as write_model_file
    from training.run import open_run

    require_place(output)
    trained = open_run(run)
    with Console(stderr=True).status("exporting and checking against onnxruntime"):
        info = write_model_file(
            trained.model,
            trained.label_map,
            output,
            metrics=trained.metrics,
            data_fingerprint=trained.data_fingerprint,
        )
    sizes = ", ".join(f"{height}x{width}" for height, width in PARITY_SIZES)
    click.echo(
        f"parity with PyTorch at {sizes}: {info.parity[-1].relative_error:.1e} of the scores' range"
        f" (must be below {TOLERANCE:.0e})"
    )
    click.echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB, {info.variant} of {info.architecture})")
