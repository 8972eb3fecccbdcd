"""How do time and memory grow as the work grows?

Run it: python benchmarks/scaling.py [QUESTION ...] [--model MODEL.onnx] [--rows N] [--rounds N] [--seconds S]
        [--threads N] [--json FILE]

On the CPU, by default with results/camvid-fcn8s.onnx. Rows take turns, in rounds; in each a row is measured in a
process of its own, whose peak memory it tells (VmHWM), by the median of its runs. Questions, all by default:

size     images of 256 to 4096 pixels a side, by fcnseg.load(MODEL).segment: time, and which operators take it, by
         onnxruntime's profile of more runs.
batch    1 to 16 images of 480x360 in one run.
classes  a MobileNetV2 FCN-8s of 2 to 1000 classes, 480x360. Above 64 the arg-max is taken at the map's cells.
clients  1 to 256 clients of `fcnseg serve`, each with a connection of its own, JPEG in, zstd out: each asks again as
         soon as it has its answer, or a moment (0.1 s) after it was refused.
models   a repository of 1 to 16 models: the server's start and memory, and requests of 8 clients that go round them.

`Power of pixels` is the p for which time grew as pixels ** p since the row above, within a round: 1 is linear.
"""

import argparse
import asyncio
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_load import SEGMENT
from loop import HEIGHT, SMALL, WIDTH, photograph
from numpy.typing import NDArray
from reporting import Report, Spread, add_json_option, chosen, ordered, peak_mib, resident_mib, seconds
from served import serve_beside_loop
from session import open_session

import fcnseg
from fcnseg.cores import usable_cores
from fcnseg.pictures import encode_jpeg
from fcnseg.v1 import segmentation_pb2 as pb

SIDES = (256, 512, 1024, 2048, 4096)
BATCHES = (1, 2, 4, 8, 16)
CLASSES = (2, 16, 64, 65, 1000)
CLIENTS = (1, 4, 16, 64, 256)
MODELS = (1, 2, 4, 8, 16)
CALLERS_OF_MODELS = 8
OPERATORS = 4
LINEAR = 1.05
LEAST_RUNS, PROFILED_RUNS = 3, 3
REFUSED_S, LONGEST_S, TIMEOUT_S = 0.1, 20.0, 60.0

Pixels = NDArray[np.uint8]
Point = dict[str, Any]
"""What a row gives in one round."""


class Scaling:
    """The questions."""

    def __init__(self, report: Report, model: Path, arguments: argparse.Namespace, folder: Path) -> None:
        self.report, self.model, self.folder = report, model, folder
        self.seconds, self.threads, self.rows = arguments.seconds, arguments.threads, arguments.rows
        self.rounds = arguments.rounds

    def size(self) -> None:
        columns = (
            "side, pixels",
            "megapixels",
            "seconds",
            "seconds a megapixel",
            "power of pixels",
            "peak memory, MiB",
        )
        table = self.report.table("size", f"Image size, {self.model.stem}", columns)
        found = self._in_turns(
            SIDES, lambda side: self._in_fresh_process(self.model, (side, side), runs_profiled=PROFILED_RUNS)
        )
        smaller: int | None = None
        steeper = []
        for side, points in found.items():
            times, megapixels, power = _spread(points, "seconds"), side * side / 1e6, None
            if smaller is not None:
                growth = times.over(_spread(found[smaller], "seconds"))
                power = Spread.of(math.log(ratio) / math.log((side / smaller) ** 2) for ratio in growth.values)
                if min(power.values) > 1 and power.median > LINEAR:
                    steeper.append(side)
            smaller = side
            table.add(side, megapixels, times, times.scaled(1 / megapixels), power, _spread(points, "peak_mib"))
        self._operators(found, steeper)

    def _operators(self, found: dict[int, list[Point]], steeper: list[int]) -> None:
        """Tell which operators a pixel's time goes to."""
        shares: dict[int, dict[str, float]] = {}
        for side, points in found.items():
            names = {name for point in points for name in point["operators"]}
            per_megapixel = 1e9 / side**2
            shares[side] = {
                name: per_megapixel * statistics.median(point["operators"].get(name, 0.0) for point in points)
                for name in names
            }
        most: Counter[str] = Counter()
        for share in shares.values():
            most.update(share)
        shown = [name for name, _ in most.most_common(OPERATORS)]
        title = "Milliseconds a megapixel by operator, by onnxruntime's profiler"
        table = self.report.table("operators", title, ("side, pixels", *shown, "all others"))
        for side, share in shares.items():
            others = sum(value for name, value in share.items() if name not in shown)
            table.add(side, *(share.get(name, 0.0) for name in shown), others)
        table.note = (
            "Medians of the rounds. An operator whose figures are the same in all rows costs a pixel the same whatever"
            " the image's size."
        )
        if steeper:
            smallest, largest = shares[min(shares)], shares[max(shares)]
            worst = max(shown, key=lambda name: largest.get(name, 0.0) - smallest.get(name, 0.0))
            table.note += (
                f" Time grew faster than pixels up to the sides {', '.join(map(str, steeper))}, in all rounds; the"
                f" operator that added the most time a pixel from the smallest to the largest image is {worst}."
            )

    def batch(self) -> None:
        columns = ("images", "seconds a run", "images/s", "peak memory, MiB")
        table = self.report.table("batch", f"Images in one run, {self.model.stem}, {WIDTH}x{HEIGHT}", columns)
        found = self._in_turns(BATCHES, lambda count: self._in_fresh_process(self.model, (HEIGHT, WIDTH), count))
        for count, points in found.items():
            times = _spread(points, "seconds")
            rates = Spread.of(count / value for value in times.values)
            table.add(count, times, rates, _spread(points, "peak_mib"))

    def classes(self) -> None:
        from nets import build_net, export_net  # noqa: PLC0415 - the processes measured hold no torch

        columns = ("classes", "arg-max at", "seconds", "peak memory, MiB")
        title = f"Number of classes, MobileNetV2 FCN-8s, {WIDTH}x{HEIGHT}"
        table = self.report.table("classes", title, columns)
        nets = {count: build_net("mobilenet_v2", count) for count in CLASSES[: self.rows]}
        paths = {count: self.folder / f"{count}.onnx" for count in nets}
        for count, net in nets.items():
            export_net(net, paths[count])
        found = self._in_turns(CLASSES, lambda count: self._in_fresh_process(paths[count], (HEIGHT, WIDTH)))
        for count, points in found.items():
            table.add(count, nets[count].class_map_at, _spread(points, "seconds"), _spread(points, "peak_mib"))

    def clients(self) -> None:
        columns = {
            "answers/s": "rate",
            "median wait, ms": "median_ms",
            "99th percentile, ms": "p99_ms",
            "refused": "refused",
            "server's peak memory, MiB": "peak_mib",
            "clients' share of the CPU": "share",
        }
        title = f"Clients of a server, {self.model.stem}, JPEGs of {WIDTH}x{HEIGHT}"
        table = self.report.table("clients", title, ("clients", *columns))
        for count, points in self._in_turns(CLIENTS, self._with_clients).items():
            table.add(count, *(_spread(points, field) for field in columns.values()))

    def _with_clients(self, count: int) -> Point:
        with serve_beside_loop(self.model, self.threads) as (address, process):
            return self._ask(address, count, [""]) | {"peak_mib": peak_mib(process.pid)}

    def models(self) -> None:
        columns = {
            "seconds from start to SERVING": "start_s",
            "memory at rest, MiB": "resident_mib",
            "answers/s": "rate",
            "peak memory, MiB": "peak_mib",
        }
        title = f"Models in a server, copies of {self.model.stem}, {CALLERS_OF_MODELS} clients that go round them"
        table = self.report.table("models", title, ("models", *columns))
        for count, points in self._in_turns(MODELS, self._with_models).items():
            table.add(count, *(_spread(points, field) for field in columns.values()))

    def _with_models(self, count: int) -> Point:
        repository = self.folder / f"{count} models"
        names = [f"model{i:02d}" for i in range(count)]
        for name in names:
            (repository / name / "1").mkdir(parents=True, exist_ok=True)
            shutil.copy(self.model, repository / name / "1" / "model.onnx")
        began = time.perf_counter()
        with serve_beside_loop(repository, self.threads) as (address, process):
            point = {"start_s": time.perf_counter() - began, "resident_mib": resident_mib(process.pid)}
            point |= self._ask(address, CALLERS_OF_MODELS, names)
            if refused := point["refused"]:
                raise SystemExit(f"{refused} requests of {CALLERS_OF_MODELS} clients were refused")
            return point | {"peak_mib": peak_mib(process.pid)}

    def _in_turns(self, counts: Sequence[int], measure: Callable[[int], Point]) -> dict[int, list[Point]]:
        """What every row gives, a point a round: rows alternate as `reporting.in_turns` has it."""
        found: dict[int, list[Point]] = {count: [] for count in counts[: self.rows]}
        for turn in range(self.rounds):
            for count in ordered(found, turn):
                found[count].append(measure(count))
        return found

    def _ask(self, address: str, clients: int, models: list[str]) -> Point:
        """Load a server; what `ask` tells, and how much of the CPU the clients took."""
        jpeg = encode_jpeg(photograph(), quality=90)
        kinds = (
            pb.SegmentRequest(encoded=jpeg, encoding=pb.CLASS_MAP_ENCODING_ZSTD, model_name=name) for name in models
        )
        requests = [request.SerializeToString() for request in kinds]
        busy, began = time.process_time(), time.perf_counter()
        waits, rate, refused = asyncio.run(ask(address, clients, requests, self.seconds))
        share = (time.process_time() - busy) / (time.perf_counter() - began) / usable_cores()
        median, p99 = (float(ms) for ms in 1e3 * np.quantile(waits, (0.5, 0.99)))
        return {"rate": rate, "median_ms": median, "p99_ms": p99, "refused": refused, "share": share}

    def _in_fresh_process(self, model: Path, size: tuple[int, int], batch: int = 1, runs_profiled: int = 0) -> Point:
        told = {"model": str(model), "size": size, "batch": batch, "runs_profiled": runs_profiled}
        told |= {"threads": self.threads, "seconds": self.seconds}
        command = [sys.executable, __file__, "--point", json.dumps(told)]
        found: Point = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        return found


async def ask(address: str, clients: int, requests: list[bytes], at_least_s: float) -> tuple[list[float], float, int]:
    """Seconds of each answer, answers a second, and the number of refusals.

    Clients go on for a time, and until so many answers came as three for each of them, but `LONGEST_S` at most; what is
    under way then is waited for, and counts.
    """
    waits: list[float] = []
    refused, turn = 0, 0
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection each
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options)) for _ in range(clients)
        ]
        calls: list[Callable[..., Any]] = [channel.unary_unary(SEGMENT) for channel in channels]
        for request in requests:
            await calls[0](request, timeout=TIMEOUT_S)
        start = time.perf_counter()

        def is_over() -> bool:
            passed = time.perf_counter() - start
            return passed > LONGEST_S or (passed > at_least_s and len(waits) >= 3 * clients)

        async def go_on(call: Callable[..., Any]) -> None:
            nonlocal refused, turn
            while not is_over():
                turn += 1
                began = time.perf_counter()
                try:
                    await call(requests[turn % len(requests)], timeout=TIMEOUT_S)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise
                    refused += 1
                    await asyncio.sleep(REFUSED_S)
                else:
                    waits.append(time.perf_counter() - began)

        await asyncio.gather(*map(go_on, calls))
        return waits, len(waits) / (time.perf_counter() - start), refused


def measure(told: dict[str, Any]) -> Point:
    """Time runs of one size in this process, which has done nothing else."""
    images = [photograph(*told["size"])] * told["batch"]
    found: Point = {"seconds": statistics.median(run_times(told, images)), "peak_mib": peak_mib()}
    if told["runs_profiled"]:
        found["operators"] = profile(Path(told["model"]), np.stack(images), told["threads"], told["runs_profiled"])
    return found


def run_times(told: dict[str, Any], images: list[Pixels]) -> list[float]:
    """Seconds of each run; the segmenter and its memory are gone afterwards."""
    segmenter = fcnseg.load(told["model"], "cpu", told["threads"], tuned=False)
    segmenter.segment_batch(images)
    times = [seconds(lambda: segmenter.segment_batch(images))]
    while len(times) < LEAST_RUNS or sum(times) < told["seconds"]:
        times.append(seconds(lambda: segmenter.segment_batch(images)))
    return times


def _spread(points: list[Point], field: str) -> Spread:
    return Spread.of(point[field] for point in points)


def profile(model: Path, images: Pixels, threads: int, runs: int) -> dict[str, float]:
    """Seconds of each operator in a run, by onnxruntime's profile of some that follow a first.

    The first gets its memory from the system, which takes large images longer than the work itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(model, threads, Path(folder) / "profile")
        for _ in range(1 + runs):
            session.run(None, {"image": images})
        events = json.loads(Path(session.end_profiling()).read_text())
    first, *_ = sorted(event["ts"] + event["dur"] for event in events if event.get("name") == "model_run")
    found: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= first:
            found[event["args"]["op_name"]] += event["dur"] / 1e6 / runs
    return dict(found)


QUESTIONS = ("size", "batch", "classes", "clients", "models")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"{', '.join(QUESTIONS)}; all by default")
    parser.add_argument("--model", type=Path, default=SMALL, help="model file (results/camvid-fcn8s.onnx)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=5, help="of each question, the smallest first (5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each row in each round, three runs at least (3)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="within an operator (cores)")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    add_json_option(parser)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure(arguments.point)))
        return
    asked = chosen(parser, arguments.questions, QUESTIONS)
    report = Report(arguments.json)
    with tempfile.TemporaryDirectory() as folder:
        scaling = Scaling(report, arguments.model, arguments, Path(folder))
        for question in asked:
            getattr(scaling, question)()
    report.write()


if __name__ == "__main__":
    main()
