"""The session that every side of a benchmark of serving runs: with `fcnseg serve`'s own settings."""

from pathlib import Path

import onnxruntime


def open_session(model: str | Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    """Open a model, a file or its bytes, on the CPU.

    So many threads within an operator, no spinning, an arena, four blocks a thread.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.dynamic_block_base", "4")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
