"""`fcnseg serve`: answer with the masks of models over gRPC."""

import logging
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, AnyStr, Literal

import click

from fcnseg.commands.options import Bytes, SectionedCommand, Size, device_option, threads_option, tuned_option
from serving.connections import ConnectionConfig
from serving.security_options import open_security, security_options
from serving.signals import end_at_once
from serving.standard_streams import open_standard_streams

if TYPE_CHECKING:
    from serving.served_model import ServedModel
    from serving.spans import CallTracer

# A net's working memory is some hundred times its image: what one machine can hold, not what a file may contain.
_MOST_IMAGE_BYTES, _MOST_PIXELS, _LONGEST_SIDE = 64 << 20, 2**25, 2**14
_LEAST_MEMORY = 2**20  # no model has a run in less
_MOST = 2**31 - 1  # what clients are told of a limit fits into its field
_KEPT_BYTES = 256 << 20
_MOST_PROCESSES = 64
_CONNECTIONS = ConnectionConfig()
_SECTIONS = {
    "host": "Address",
    "device": "Models",
    "max_batch": "Batching",
    "max_memory": "Limits",
    "threads": "Computing",
    "grace_s": "Stopping",
    "max_age_s": "Connections",
    "http_port": "Watching the server",
    "tls_cert": "Security",
}


class _ServeCommand(SectionedCommand):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options, once SIGTERM ends the process: by itself it does not end a container's first process."""
        open_standard_streams()
        signal.signal(signal.SIGTERM, end_at_once)  # before the slow imports, and until the server listens for it
        return super().parse_args(ctx, args)


@click.command(cls=_ServeCommand, sections=_SECTIONS)
@click.argument("models", nargs=-1, required=True, metavar="MODEL.onnx|REPOSITORY...", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all addresses.")
@click.option(
    "--port", default=50051, show_default=True, type=click.IntRange(0, 65535), help="gRPC port; 0 picks a free one."
)
@click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(1, _MOST_PROCESSES),
    help="Server processes that share the port, each with its own copy of the models, for a GPU that computes faster"
    " than one process decodes and answers. Connections are distributed among them. Limits apply per process, but the"
    " memory limit is divided.",
)
@device_option
@click.option(
    "--warm",
    "warm_sizes",
    multiple=True,
    type=Size(),
    help="Image size to warm up: it is run, alone and in a full batch, before the server reports SERVING. May be"
    " repeated.",
)
@click.option(
    "--watch",
    "watch_s",
    metavar="SECONDS",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds between checks for new, changed and removed models; 0 for no checks.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    help="Most images per run. [default: as tuned, else 1 on the CPU and 8 on CUDA]",
)
@click.option(
    "--max-delay-ms",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 60_000),
    help="Milliseconds that an idle model waits for more images of the same padded size.",
)
@click.option(
    "--max-queue",
    default=64,
    show_default=True,
    type=click.IntRange(1, _MOST),
    help="Most images of a model that may wait or run at a time; more are refused.",
)
@click.option(
    "--runners",
    type=click.IntRange(1, 64),
    help="Concurrent runs of a model while images wait. On the CPU they divide the threads, all of which a single image"
    " gets, and the model is opened a second time for them. [default: as tuned, else 2]",
)
@tuned_option
@click.option(
    "--max-memory",
    type=Bytes(_LEAST_MEMORY),
    help="Memory limit, such as 2GiB, for all images in progress and their runs together. [default: half of the memory;"
    " for runs on CUDA, half of the device's memory]",
)
@click.option(
    "--max-image-bytes",
    default=_MOST_IMAGE_BYTES,
    show_default=True,
    type=Bytes(1),
    help="Most bytes of an encoded image; larger ones are refused.",
)
@click.option(
    "--max-image-pixels",
    default=_MOST_PIXELS,
    show_default=True,
    type=click.IntRange(1, _MOST),
    help="Most pixels of an image; larger ones are refused.",
)
@click.option(
    "--max-image-side",
    default=_LONGEST_SIDE,
    show_default=True,
    type=click.IntRange(1, _MOST),
    help="Most rows or columns of an image; larger ones are refused.",
)
@threads_option()
@click.option(
    "--spinning/--no-spinning",
    default=None,
    help="Let idle CPU threads busy-wait, which takes cores from decoding and encoding. [default: as tuned, else"
    " no-spinning]",
)
@click.option("--arena/--no-arena", default=True, show_default=True, help="Keep the memory of CPU runs for later runs.")
@click.option(
    "--cudnn-search",
    default="heuristic",
    show_default=True,
    type=click.Choice(["heuristic", "exhaustive", "default"]),
    help="How cuDNN chooses algorithms for a new input size; exhaustive is another heuristic, and slower.",
)
@click.option(
    "--tf32/--no-tf32",
    default=False,
    show_default=True,
    help="Let CUDA compute in TF32: faster, but masks may differ.",
)
@click.option(
    "--channels-last/--no-channels-last",
    default=None,
    help="Use the channels-last (NHWC) memory layout on CUDA, which suits tensor cores. [default: for fp16 files only]",
)
@click.option(
    "--cuda-graphs",
    metavar="N",
    default=None,
    type=click.IntRange(0, 1024),
    help="Record CUDA graphs for up to N input shapes (batch, height, width), each of which replays a run by one call"
    " and holds another copy of the model. [default: 16 if the model can be recorded, while half of the device's memory"
    " is free]",
)
@click.option(
    "--grace",
    "grace_s",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds that requests in progress may still take after SIGTERM.",
)
@click.option(
    "--drain-delay",
    "drain_delay_s",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds to keep accepting requests after SIGTERM, while health already reports NOT_SERVING, so that load"
    " balancers notice.",
)
@click.option(
    "--max-connection-age",
    "max_age_s",
    default=_CONNECTIONS.max_age_s,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds after which a client must reconnect, so that load balancers can move it; 0 for no limit.",
)
@click.option(
    "--max-connection-age-grace",
    "max_age_grace_s",
    default=_CONNECTIONS.max_age_grace_s,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds that requests and streams of such a connection may still take; 0 for no limit.",
)
@click.option(
    "--keepalive",
    "keepalive_s",
    default=_CONNECTIONS.keepalive_s,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Seconds without traffic after which a client is pinged, and disconnected if it does not answer.",
)
@click.option(
    "--max-streams",
    default=_CONNECTIONS.max_streams,
    show_default=True,
    type=click.IntRange(min=1),
    help="Most requests per connection at a time.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(min=1),
    help="Most connections at a time; further ones are closed. [default: half of the limit on open files]",
)
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    help="Port for /healthz, /readyz and /metrics over HTTP; 0 picks a free one. [default: none]",
)
@click.option(
    "--log-format",
    default="human",
    show_default=True,
    type=click.Choice(["human", "json"]),
    help="Format of the log, which goes to stderr.",
)
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["info", "warning"]),
    help="Lowest level to log; info includes a line for each request.",
)
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    envvar=["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"],
    show_envvar=True,
    help="Trace requests, and export the spans by OTLP over gRPC to this endpoint, such as http://127.0.0.1:4317. Other"
    " OTEL_ variables apply too. Needs the extra 'tracing'. [default: no tracing]",
)
@security_options
@click.pass_context
def serve(
    command: click.Context,
    *,
    models: tuple[Path, ...],
    host: str,
    port: int,
    processes: int,
    device: str,
    warm_sizes: tuple[tuple[int, int], ...],
    watch_s: float,
    max_batch: int | None,
    max_delay_ms: float,
    max_queue: int,
    runners: int | None,
    tuned: bool,
    max_memory: int | None,
    max_image_bytes: int,
    max_image_pixels: int,
    max_image_side: int,
    threads: int | None,
    spinning: bool | None,
    arena: bool,
    cudnn_search: Literal["heuristic", "exhaustive", "default"],
    tf32: bool,
    channels_last: bool | None,
    cuda_graphs: int | None,
    grace_s: float,
    drain_delay_s: float,
    max_age_s: float,
    max_age_grace_s: float,
    keepalive_s: float,
    max_streams: int,
    max_connections: int | None,
    http_port: int | None,
    log_format: Literal["human", "json"],
    log_level: str,
    otlp_endpoint: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    tokens: Path | None,
    open_admin: bool,
    no_admin: bool,
    no_reflection: bool,
) -> None:
    """Serve models over gRPC until SIGTERM or Ctrl-C.

    A model file is served by the name of its stem, cat.onnx as cat, and has version 1. A repository is a folder of
    NAME/VERSION/model.onnx. The same port also answers clients of the Open Inference Protocol (KServe, Triton).

    Example: fcnseg serve cat.onnx --port 50051 --warm 480x640

    Example: fcnseg serve models/ --watch 10 --http-port 8080 --tokens tokens.txt
    """
    from serving.logs import COMMAND, set_up_logs
    from serving.processes import Part, serve_in_processes, wait_for_others

    part = Part.of_this_process()
    set_up_logs(log_format, log_level, part.number if part else None)  # first: what fails is told in that format

    import uvloop

    from fcnseg.allocator import keep_freed_memory
    from fcnseg.cores import usable_cores
    from fcnseg.devices import resolve_device
    from fcnseg.engine import PIPELINE_OPTIONS
    from fcnseg.images import ImageLimits, require_within
    from fcnseg.tuning import Settings, default_settings
    from serving.batcher import BatchingConfig
    from serving.open_files import allow_most_open_files
    from serving.registry import ModelRegistry
    from serving.served_model import ModelConfig
    from serving.server import ServerConfig, serve_until_stopped

    limits = ImageLimits(max_image_bytes, max_image_pixels, max_image_side)
    for height, width in warm_sizes:
        require_within(limits, height, width, "the image that --warm asks for")
    security = open_security(
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        tokens=tokens,
        open_admin=open_admin,
        no_admin=no_admin,
        no_reflection=no_reflection,
    )
    if processes > 1:  # who changes models would reach one of them
        security = replace(security, admin_closed_by=security.admin_closed_by or "--processes")
    if part is None and (exposure := security.exposure(host)):
        logging.getLogger(COMMAND).warning("%s", exposure)
    tracer = _open_tracer(otlp_endpoint) if part is not None or processes == 1 else None  # who starts others has none
    most_files = allow_most_open_files()
    connections = ConnectionConfig(
        keepalive_s,
        _CONNECTIONS.keepalive_timeout_s,
        max_age_s,
        max_age_grace_s,
        max_streams,
        max_connections or most_files // 2,
    )
    config = ServerConfig(host, port, limits, grace_s, drain_delay_s, connections, watch_s, http_port, security, tracer)
    if part is not None:
        config = replace(config, port=part.port, http_port=None if http_port is None else 0, shares_port=True)
    config.require_free_ports()  # now: models may take minutes to open
    if part is None and processes > 1:
        command.exit(uvloop.run(serve_in_processes(processes, host, port, http_port, _print)))
    keep_freed_memory(_KEPT_BYTES)
    device = resolve_device(device)
    unsaid = default_settings(device)
    engine = replace(
        PIPELINE_OPTIONS,
        arena=arena,
        cudnn_search=cudnn_search,
        tf32=tf32,
        channels_last=channels_last,
        cuda_graphs=cuda_graphs,
    )
    batching = BatchingConfig(unsaid.max_batch or 1, max_delay_ms / 1000, max_queue, unsaid.runners or 1)
    sharers = 1 if part is None else part.count
    if device == "cpu" and threads is None and sharers > 1:
        threads = max(1, usable_cores() // sharers)
    said = Settings(threads, spinning, runners, max_batch)
    models_config = ModelConfig(device, engine, batching, max_memory or 0, warm_sizes, said, tuned, sharers)
    registry = ModelRegistry(models, models_config, strict=not watch_s)  # a watched folder may be being filled

    def announce(address: str, http_address: str | None) -> None:
        probes = [] if http_address is None else [f"probes and metrics at http://{http_address}"]
        _print([*(f"serving {_describe(model)}" for model in registry.models), *probes, f"listening on {address}"])

    # An event loop of less Python: docs/decisions/.
    uvloop.run(serve_until_stopped(registry, config, announce, wait_for_others(part)))


def _open_tracer(endpoint: str | None) -> "CallTracer | None":
    if endpoint is None:
        return None
    from serving.spans import open_tracer

    return open_tracer(endpoint)


def _print(lines: Sequence[AnyStr]) -> None:
    for line in lines:
        click.echo(line)


def _describe(model: "ServedModel") -> str:
    return (
        f"{model.name} (version {model.version}, {model.info.variant} of {model.info.architecture},"
        f" {len(model.info.label_map)} classes) on {model.device}"
    )
