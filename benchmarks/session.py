"""The session that every side of a benchmark of serving runs: as `fcnseg serve`, but that memory is laid out ahead."""

from pathlib import Path

import onnxruntime


def open_session(model: str | Path | bytes, threads: int, profile: Path | None = None) -> onnxruntime.InferenceSession:
    """Open a model, a file or its bytes, on the CPU.

    So many threads within an operator, no spinning, an arena, four blocks a thread; with onnxruntime's profiler on,
    where the beginning of its file's path is given.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.dynamic_block_base", "4")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
