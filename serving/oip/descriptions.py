"""What the protocol tells of the server, its models and its repository."""

from collections.abc import Sequence
from contextlib import suppress

import fcnseg
from fcnseg.errors import FcnsegError
from fcnseg.model_file import CLASS_MAP, CONFIDENCE, HEATMAP
from serving.oip import inference_pb2 as pb
from serving.oip.outputs import class_map_datatype
from serving.oip.tensors import INPUT
from serving.registry import ModelRegistry
from serving.served_model import ServedModel
from serving.statistics import Duration

READY, UNAVAILABLE = "READY", "UNAVAILABLE"
# Triton's by Triton's names, then those that only this server has.
_EXTENSIONS = ("model_configuration", "model_repository", "statistics", "encoded_images", "output_encoding")
_PLATFORM, _BACKEND = "onnxruntime_onnx", "onnxruntime"
_DATA_TYPES = {"UINT8": pb.TYPE_UINT8, "UINT16": pb.TYPE_UINT16, "FP32": pb.TYPE_FP32}
_LARGEST_INT32 = 2**31 - 1


def most_images(model: ServedModel) -> int:
    """Return how many images one request to a model may hold: more would never be let in together."""
    return min(model.batcher.config.max_queue, _LARGEST_INT32)


def write_server() -> pb.ServerMetadataResponse:
    """Return what server this is."""
    return pb.ServerMetadataResponse(name="fcnseg", version=fcnseg.__version__, extensions=_EXTENSIONS)


def write_metadata(model: ServedModel, versions: Sequence[str]) -> pb.ModelMetadataResponse:
    """Return a model's tensors.

    Args:
        model: The model.
        versions: The versions of it that are open, ascending.
    """
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=model.name,
        versions=versions,
        platform=_PLATFORM,
        inputs=[tensor(name=INPUT, datatype="UINT8", shape=[-1, -1, -1, 3])],
        outputs=[tensor(name=name, datatype=type_, shape=[-1, *dims]) for name, type_, dims in _outputs(model)],
    )


def write_config(model: ServedModel) -> pb.ModelConfigResponse:
    """Return how a model is run."""
    batching = model.batcher.config
    config = pb.ModelConfig(
        name=model.name,
        platform=_PLATFORM,
        backend=_BACKEND,
        version_policy=pb.ModelVersionPolicy(all=pb.ModelVersionPolicy.All()),
        max_batch_size=most_images(model),
        input=[pb.ModelInput(name=INPUT, data_type=pb.TYPE_UINT8, format=pb.ModelInput.FORMAT_NHWC, dims=[-1, -1, 3])],
        output=[
            pb.ModelOutput(name=name, data_type=_DATA_TYPES[type_], dims=dims) for name, type_, dims in _outputs(model)
        ],
        dynamic_batching=pb.ModelDynamicBatching(
            preferred_batch_size=[batching.max_batch],
            max_queue_delay_microseconds=round(batching.max_delay_s * 1e6),
        ),
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
    )
    return pb.ModelConfigResponse(config=config)


def _outputs(model: ServedModel) -> list[tuple[str, str, list[int]]]:
    """Return the outputs' names, datatypes, and shapes without the first axis."""
    label_map = model.info.label_map
    return [
        (CLASS_MAP, class_map_datatype(label_map), [-1, -1]),
        (HEATMAP, "FP32", [len(label_map), -1, -1]),
        (CONFIDENCE, "UINT8", [-1, -1]),
    ]


def write_statistics(model: ServedModel) -> pb.ModelStatistics:
    """Return what a model has done."""
    done = model.statistics
    runs = done.runs.copy()  # the model's thread may add to it
    return pb.ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=int(done.last_run * 1000),
        inference_count=sum(images * duration.count for images, duration in runs.items()),
        execution_count=sum(duration.count for duration in runs.values()),
        inference_stats=pb.InferStatistics(
            success=_write_duration(done.success),
            fail=_write_duration(done.failure),
            queue=_write_duration(done.queue),
            compute_input=_write_duration(done.decode),
            compute_infer=_write_duration(done.infer),
            compute_output=_write_duration(done.encode),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=images, compute_infer=_write_duration(duration))
            for images, duration in sorted(runs.items())
        ],
    )


def _write_duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=round(duration.seconds * 1e9))


def write_index(registry: ModelRegistry, *, ready: bool) -> pb.RepositoryIndexResponse:
    """Return the models that the registry could hold; it looks at folders.

    Args:
        registry: The models.
        ready: Whether to list only those that are open. So it is where the repository cannot be looked at, too.
    """
    states = {(model.name, model.version): READY for model in registry.models}
    with suppress(FcnsegError):
        for source in () if ready else registry.sources():
            states.setdefault((source.name, source.version), UNAVAILABLE)
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(
                name=name, version=version, state=state, reason="" if state == READY else "not loaded"
            )
            for (name, version), state in sorted(states.items(), key=lambda entry: (entry[0][0], int(entry[0][1])))
        ]
    )
