"""`fcnseg serve`: answer with the masks of models over gRPC."""

from pathlib import Path

import click

from fcnseg.images import ImageLimits

# A net's working memory is some hundred times its image: what one machine can hold, not what a file may contain.
_LIMITS = ImageLimits(max_pixels=2**25)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL.onnx|REPOSITORY...", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option(
    "--port", default=50051, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 picks a free one."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--threads",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="CPU threads within an operator; 0 takes one per physical core.",
)
@click.option(
    "--max-image-bytes",
    default=_LIMITS.max_bytes,
    show_default=True,
    type=click.IntRange(min=1),
    help="Refuse encoded images of more bytes.",
)
@click.option(
    "--max-image-pixels",
    default=_LIMITS.max_pixels,
    show_default=True,
    type=click.IntRange(min=1),
    help="Refuse images of more pixels.",
)
@click.option(
    "--grace",
    "grace_s",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds that requests under way may take after SIGTERM.",
)
def serve(
    models: tuple[Path, ...],
    host: str,
    port: int,
    device: str,
    threads: int,
    max_image_bytes: int,
    max_image_pixels: int,
    grace_s: float,
) -> None:
    """Serve models over gRPC until SIGTERM or Ctrl-C.

    A model file's name is its stem and its version 1; a repository is a folder of NAME/VERSION/model.onnx.

    Example: fcnseg serve cat.onnx --port 50051
    """
    import asyncio

    from serving.models import open_models
    from serving.server import ServerConfig, serve_until_stopped

    registry = open_models(models, device, threads)

    def announce(address: str) -> None:
        for model in registry.models:
            click.echo(
                f"serving {model.name} (version {model.version}, {model.info.variant} of {model.info.architecture},"
                f" {len(model.info.label_map)} classes) on {model.device}"
            )
        click.echo(f"listening on {address}")

    config = ServerConfig(host, port, ImageLimits(max_image_bytes, max_image_pixels), grace_s)
    asyncio.run(serve_until_stopped(registry, config, announce))
