"""Trial runs of a model file in bounded memory, before it is opened for use.

The memory that a graph takes cannot be read from it, since shapes are computed while it runs. So it is run on two tiny
images, without optimisation, with an arena of limited size: then nothing is computed before a run, and a run that
exceeds the limit fails like any other.

When a model is opened for use, onnxruntime computes in advance what does not depend on the image (constant folding),
and keeps it in memory without a limit. The two runs reveal such data: its size is the same for both images.
"""

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from fcnseg.errors import ModelFileError, one_line
from fcnseg.geometry import AxisGeometry
from fcnseg.model_file import ModelInfo, open_unprepared, read_info
from fcnseg.placement import node_runs
from fcnseg.profiles import Event, end_profiling, profile_folder

_ROOM = 512 << 20
_ROOM_PER_FILE_BYTE = 4
"""Weights are stored with 32 or 16 bits, and may be widened in a run."""
_FIXED_ROOM = 64 << 20
_LARGEST_SIDE = 1 << 12
_ARENA = {"arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
_SHRINK = "memory.enable_memory_arena_shrinkage"
_OUT_OF_ROOM = "bfc_arena"
_arena_in_use = threading.Lock()


def try_out(path: Path, threads: int = 0) -> ModelInfo:
    """Run a model file on two tiny images, and return its metadata.

    A run may take 512 MiB plus four times the file's size; data that do not depend on the image's size may take 64 MiB
    plus four times the file's size in all.

    Args:
        path: The file; it has passed `model_grammar`.
        threads: CPU threads per operator; 0 uses one per physical core.

    Raises:
        ModelFileError: It is not a valid fcnseg model, takes more memory, or cannot be run; or there is no disk space
            for the profile.
    """
    size = path.stat().st_size
    with profile_folder(path) as folder:
        session = _open(path, threads, _ROOM + _ROOM_PER_FILE_BYTE * size, folder)
        info = read_info(session, path)
        sides = [(_smallest(info.geometry.y, more, path), _smallest(info.geometry.x, more, path)) for more in (0, 1)]
        try:
            for (height, width), confidence in zip(sides, (True, False), strict=True):
                _run(session, height, width, confidence=confidence, info=info, path=path)
            events = end_profiling(session, path)
        except ModelFileError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise ModelFileError(_tell(error, path, size)) from error
        fixed = _fixed_bytes(*node_runs(events))
    if fixed > _FIXED_ROOM + _ROOM_PER_FILE_BYTE * size:
        raise ModelFileError(
            f"{path} was refused: it computes {fixed >> 20} MB that do not depend on the image's size, of a file of"
            f" {size} bytes; export the model again"
        )
    return info


def _open(path: Path, threads: int, room: int, folder: Path) -> onnxruntime.InferenceSession:
    """Open a file with its own arena of at most `room` bytes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "trial")
    options.add_session_config_entry("session.use_env_allocators", "1")
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    with _arena_in_use:  # a session takes what was registered last
        onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg({"max_mem": room, **_ARENA}))
        return open_unprepared(path, options)


def _smallest(axis: AxisGeometry, more: int, path: Path) -> int:
    """Return the pixels along an axis of the smallest image, enlarged by `more` alignments."""
    size = axis.padded(1) + more * axis.alignment
    if size > _LARGEST_SIDE:
        raise ModelFileError(
            f"{path} was refused: by its metadata the smallest image has {size} pixels a side, and {_LARGEST_SIDE} are"
            " the most; export the model again"
        )
    return max(size - axis.lead - axis.trail, 1)


def _run(
    session: onnxruntime.InferenceSession, height: int, width: int, *, confidence: bool, info: ModelInfo, path: Path
) -> None:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(_SHRINK, "cpu:0")
    feed = {"image": np.zeros((1, height, width, 3), np.uint8), "with_confidence": np.array(confidence)}
    outputs = session.run(None, feed, options)
    shapes = [output.shape for output in outputs]
    maps = (1, height, width)
    if shapes[0] != maps or shapes[1][:2] != (1, len(info.label_map)) or (confidence and shapes[2] != maps):
        raise ModelFileError(
            f"{path} answers an image of {height}x{width} pixels with a class map of {shapes[0]}, a heatmap of"
            f" {shapes[1]} and a confidence map of {shapes[2]}; export the model again"
        )


def _fixed_bytes(small: list[Event], large: list[Event]) -> int:
    """Return the bytes of node outputs that have the same size in both runs, or occur in only one of them."""

    def sizes(events: list[Event]) -> Mapping[tuple[str, int], int]:
        seen: dict[str, int] = {}
        found = {}
        for event in events:
            name = str(event["name"])
            seen[name] = seen.get(name, 0) + 1
            found[name, seen[name]] = int(event["args"]["output_size"])
        return found

    first, second = sizes(small), sizes(large)
    return sum(size for node, size in {**second, **first}.items() if second.get(node, size) == first.get(node, size))


def _tell(error: Exception, path: Path, size: int) -> str:
    reason = one_line(error)
    if _OUT_OF_ROOM in reason:
        room = (_ROOM + _ROOM_PER_FILE_BYTE * size) >> 20
        return f"{path} was refused: a run takes more than {room} MB for a tiny image; export the model again"
    return f"{path} cannot be run: {reason}; export the model again"
