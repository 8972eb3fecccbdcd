"""Explain failures of a training that are not faults of the program, in one line with the remedy."""

import torch

from fcnseg.errors import DatasetError, FcnsegError, UsageError
from training.config import TrainConfig

_NO_ROOM = "DefaultCPUAllocator"
_NO_STATISTICS = "Expected more than 1 value per channel"
_WORKER = "DataLoader worker"


def explain_failure(error: Exception, config: TrainConfig, *, training: bool) -> FcnsegError | None:
    """Translate an error of a step, a validation or the workers; return None if there is no better explanation.

    Args:
        error: The error.
        config: The run's options.
        training: Whether the error was raised in a training step, rather than in a validation.
    """
    text = str(error)
    if isinstance(error, DatasetError):
        # A worker's error contains its traceback, whose last line is the error raised in the worker.
        lines = text.strip().splitlines()
        return DatasetError(lines[-1].partition(": ")[2]) if len(lines) > 1 else None
    if isinstance(error, torch.OutOfMemoryError):
        return UsageError(_no_room("the GPU's memory", config, training=training))
    if isinstance(error, RuntimeError) and _NO_ROOM in text:
        return UsageError(_no_room("memory", config, training=training))
    if isinstance(error, RuntimeError) and text.startswith(_WORKER):
        return UsageError(
            "a process that prepares batches was killed, most likely because memory ran out, or shared memory"
            " (/dev/shm) in a container; take fewer --workers, or none (0), and continue with --resume"
        )
    if isinstance(error, ValueError) and text.startswith(_NO_STATISTICS):
        return UsageError(
            "BatchNorm needs more than one value per channel for its statistics, and a step of"
            f" {config.batch_size} {config.seen} leaves it one; take a larger --batch-size (at most the number of"
            " training images) or --crop, or --freeze-statistics"
        )
    return None


def _no_room(memory: str, config: TrainConfig, *, training: bool) -> str:
    if not training:
        return (
            f"a validation image, which is taken whole, did not fit into {memory}; make the images of val smaller, or"
            " take a smaller --backbone"
        )
    return (
        f"a step of {config.batch_size} {config.seen} did not fit into {memory}; take a smaller --batch-size or --crop"
    )
