"""The benchmarks, in the order of docs/benchmarks.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A file of this folder.

    Attributes:
        quick: Arguments for the shortest run from end to end; DATA stands for a data folder.
        needs: What it needs besides the project's own environment, in the words of docs/benchmarks.md.
        by_hand: Whether `run_all.py` leaves it out, because it needs a GPU, data or hours.
    """

    quick: tuple[str, ...]
    needs: str = ""
    by_hand: bool = False


_ONE_NET = ("--net", "mobilenet_v2", "--rounds", "2")
_BRIEFLY = ("--rounds", "2", "--seconds", "0.2")
_DATA = "a data folder: [results.md](results.md)"
BENCHMARKS = {
    "eager": Benchmark((*_ONE_NET, "--seconds", "0")),
    "folder_peers": Benchmark((*_ONE_NET, "--images", "8")),
    "folder": Benchmark((*_BRIEFLY, "--images", "4", "--many", "40")),
    "serving_load": Benchmark(_BRIEFLY, "h2load"),
    "serving_peers": Benchmark((*_BRIEFLY, "--nets", "small"), "h2load and the peers' environments"),
    "perf_analyzer": Benchmark(_BRIEFLY, "Debian's libb64-0d, and PyPI"),
    "int8": Benchmark(("--net", "squeezenet1_1", *_BRIEFLY)),
    "gpu": Benchmark(("--device", "cpu", "--quick", "--budget", "1100"), "a CUDA GPU: [gpu.md](gpu.md)", by_hand=True),
    "scaling": Benchmark(("--rows", "2", *_BRIEFLY)),
    "tail": Benchmark(("--rounds", "2", "--classes", "12")),
    "tiling": Benchmark(("--rounds", "2", "--size", "500x700", "--tiles", "384")),
    "large_image": Benchmark(("--size", "1000x1500", "--windows", "2")),
    "resampling": Benchmark(("--rounds", "2", "--classes", "12")),
    "dense_vs_sliding": Benchmark(("--rounds", "2", "--net", "alexnet")),
    "train_step": Benchmark(
        ("DATA", "--no-pretrained", "--crop", "64", "--steps", "1", "--rounds", "2"),
        "a data folder: [the README](../benchmarks/README.md)",
        by_hand=True,
    ),
    "ablations": Benchmark(
        ("DATA", "--backbone", "mobilenet_v2", "--epochs", "1", "--only", "not pretrained"), _DATA, by_hand=True
    ),
    "fc_transfer": Benchmark(("--seeds", "1", "--epochs", "1", "--learn-epochs", "1"), _DATA, by_hand=True),
    "architectures": Benchmark(("alexnet", "vit_b_16"), "hours: [architectures.md](architectures.md)", by_hand=True),
}
