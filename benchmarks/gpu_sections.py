"""What gpu.py measures: its nets, its sections, and the rows that they find."""

import gc
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.request import urlopen

import grpc
import numpy as np
import torch
from as_users_write_it import AsUsersWriteIt
from gpu_ways import BY_TWO, MASKS, Files, SameModule, Torch, Way, kernel_times, masks_of, matrix_rate
from grpc_load import SEGMENT, load
from nets import build_net, export_net
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from reporting import Spread, in_turns, seconds
from served import free_port, serve
from torch import nn

from fcnseg import images, masks
from fcnseg.bound_run import Shape
from fcnseg.engine import Engine, EngineOptions
from fcnseg.masks import Encoding
from fcnseg.pictures import encode_jpeg
from fcnseg.v1 import segmentation_pb2 as pb
from training.model import SegmentationModel
from training.precision import FilePrecision

CLASSES = 21
PRECISIONS: tuple[FilePrecision, ...] = ("fp16", "fp32")
LOADING_PROCESSES = 12
MOST_DIFFERING = 0.1
"""Of the pixels: random scores lie closer together than those of a trained net, and 16-bit floats are rounded."""
SERVERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "server": (("--processes", "2"), ()),
    "settings": (
        ("--processes", "3"),
        ("--processes", "2", "--runners", "3"),
        ("--processes", "2", "--runners", "1"),
        ("--runners", "3"),
        ("--cuda-graphs", "0"),
    ),
}
"""Options of the servers that are asked, by section."""
KERNEL_RUNS, KERNELS_SHOWN = 5, 12
SAME_MODULE = "PyTorch on the same module"
PEERS: dict[str, Callable[[SegmentationModel], nn.Module]] = {
    SAME_MODULE: SameModule,
    "PyTorch as users write it": AsUsersWriteIt,
}
ROUNDS = 5
PREPARING = 3
"""Calls that are not timed: torch.compile compiles in the first, records in the second and replays from then on."""
LONG_S = 4.0
"""To make a way ready, from which on it is told."""
CASES_COMPILED = 2
"""Of a net, the first so many."""
ENDING_S = 5.0
"""Left of a section's time for what was begun to end."""


@dataclass(frozen=True)
class Net:
    """A net to be measured.

    Attributes:
        name: Of its section and its files.
        architecture: For `build_model`.
        cases: Batch, height, width.
    """

    name: str
    architecture: str
    cases: tuple[Shape, ...]


@dataclass(frozen=True)
class Plan:
    """What a run measures.

    Attributes:
        nets: The nets; the server serves the first.
        square: Height and width of the images that the server is asked for.
        seconds: How long each way is timed, all rounds together.
        matrix_side: Of the product that tells the ceiling.
        load_s: How long answers of the server are counted.
        clients: How many ask it.
        precision: Of the ways that are of interest.
        budgets: Seconds by kind of section.
    """

    nets: tuple[Net, ...]
    square: int
    seconds: float
    matrix_side: int
    load_s: float
    clients: int
    precision: str
    budgets: dict[str, float]


_CITY = ((1, 360, 480), (8, 360, 480), (1, 1024, 2048), (8, 1024, 2048))
FULL = Plan(
    nets=(
        Net("vgg16", "vgg16", ((8, 500, 500), (1, 500, 500))),
        Net("resnet50", "resnet50", _CITY),
        Net("mobilenet_v2", "mobilenet_v2", _CITY),
    ),
    square=500,
    seconds=0.3,
    matrix_side=8192,
    load_s=7,
    clients=32,
    precision="fp16",
    budgets={
        "export": 130,
        "ceiling": 40,
        "net": 85,
        "server": 140,
        "settings": 150,
        "shapes": 60,
        "placement": 60,
        "compile": 90,
        "compiled": 60,
        "kernels": 30,
    },
)
QUICK = Plan(
    nets=(
        Net(
            "small",
            f"{Path(__file__).parent.parent / 'tests' / 'golden' / 'small_net.py'}:SmallNet",
            ((2, 48, 64), (1, 48, 64)),
        ),
    ),
    square=48,
    seconds=0.05,
    matrix_side=256,
    load_s=1,
    clients=4,
    precision="fp32",  # the CPU's half precision is slow
    budgets=dict.fromkeys(FULL.budgets, 180.0),
)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        section: Where it was measured.
        case: On what: batch and size.
        way: How.
        values: What was measured: a figure a round, or one; none where it failed.
        unit: Of what.
        ratios: Time over that of the first in the same turns, one a round.
        multiply_adds: Of an image, where the unit is a time of one.
        note: What else there is to say, or why it failed.
    """

    section: str
    case: str
    way: str
    values: tuple[float, ...] = ()
    unit: str = ""
    ratios: tuple[float, ...] = ()
    multiply_adds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Entrant:
    """A way that takes turns with others.

    Attributes:
        make: Makes it ready.
        batches: How many batches a call computes.
        is_compared: Whether its masks have to be the first's.
        has_kernels: Whether the time of its kernels alone is told too.
    """

    make: Callable[[], Way]
    batches: int = 1
    is_compared: bool = True
    has_kernels: bool = False


def run_section(
    name: str, plan: Plan, device: str, folder: Path, end: float, rows: Connection, log: Path, cores: set[int]
) -> None:
    """Run a section in a process made for it.

    Args:
        name: As `sections_of` in gpu.py has it.
        plan: What a run measures.
        device: `cpu` or `cuda:N`.
        folder: Of the nets' files.
        end: When its time is over, in seconds since the epoch.
        rows: Where its rows go, each as soon as it is known.
        log: A file for all that is printed.
        cores: Those that it may use.
    """
    os.sched_setaffinity(0, cores)
    os.setsid()  # so that a server and clients that it starts can be ended with it
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.manual_seed(0)
    Section(name, plan, device, folder, end, rows).run()


class Section:
    """What one process measures."""

    def __init__(self, name: str, plan: Plan, device: str, folder: Path, end: float, rows: Connection) -> None:
        self.name, self.plan, self.device, self.folder, self.end, self.rows = name, plan, device, folder, end, rows
        self.masks: dict[str, NDArray[np.generic]] = {}

    def run(self) -> None:
        whole = {"ceiling": self.ceiling, "placement": self.placement, "shapes": self.shapes}
        whole |= {name: partial(self.servers, options) for name, options in SERVERS.items()}
        nets = {net.name: net for net in self.plan.nets}
        match self.name.split():
            case ["export", name, "fp16" | "fp32" as precision]:
                self.export(nets[name], precision)
            case ["compile", name, number]:
                self.compile(nets[name], int(number))
            case ["compiled", name]:
                self.compiled(nets[name])
            case ["kernels", name]:
                self.kernels(nets[name])
            case [name] if name in nets:
                self.net(nets[name])
            case [name, *_]:
                whole[name]()

    def row(
        self,
        case: str,
        way: str,
        *values: float,
        unit: str = "",
        ratios: tuple[float, ...] = (),
        multiply_adds: float | None = None,
        note: str = "",
    ) -> None:
        self.rows.send(Row(self.name, case, way, values, unit, ratios, multiply_adds, note))

    def attempt(self, case: str, way: str, measure: Callable[[], None]) -> None:
        """Measure; what goes wrong becomes a row, and so does what there is no time for."""
        if time.time() > self.end - ENDING_S:
            self.row(case, way, note="no time was left")
            return
        try:
            measure()
        except (Exception, SystemExit) as error:  # noqa: BLE001 # whatever it is, the others are still to be measured
            self.row(case, way, note=f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        gc.collect()

    def export(self, net: Net, precision: FilePrecision) -> None:
        def measure() -> None:
            path = self.path(net, precision)
            began = time.perf_counter()
            export_net(build_net(net.architecture, CLASSES), path, precision)
            took = time.perf_counter() - began
            self.row("", precision, took, unit="s", note=f"{path.stat().st_size / 1e6:.0f} MB")

        self.attempt("", precision, measure)

    def ceiling(self) -> None:
        side = self.plan.matrix_side

        def measure() -> None:
            rate = matrix_rate(self.device, side, ROUNDS, 2 * self.plan.seconds / ROUNDS)
            self.row(f"{side} x {side}", "matrix product", *rate.scaled(1e-12).values, unit="T multiply-adds/s")

        self.attempt(f"{side} x {side}", "matrix product", measure)

    def placement(self) -> None:
        for net in self.plan.nets:
            for precision, path in self.paths(net).items():
                self.attempt(net.name, precision, partial(self.place, net, precision, path))

    def place(self, net: Net, precision: str, path: Path) -> None:
        probe = Engine(path, self.device, EngineOptions(prove=True)).probe  # fails where not all of it is on the device
        if probe is None:
            raise RuntimeError("the engine proved nothing")
        counts: dict[str, int] = {}
        for placed in probe.placements:
            what = f"{placed.provider.removesuffix('ExecutionProvider')}, {'image' if placed.image_sized else 'sizes'}"
            counts[what] = counts.get(what, 0) + placed.nodes
        note = "; ".join(f"{what}: {nodes} nodes" for what, nodes in sorted(counts.items()))
        self.row(net.name, precision, probe.plain_bytes_per_pixel, unit="bytes/pixel", note=note)

    def net(self, net: Net) -> None:
        files = Files(self.paths(net), self.device, self.folder)
        peers = self.peers(net, PEERS)
        works = {shape: self.multiply_adds(peers[SAME_MODULE], shape) for shape in net.cases}
        is_last_faster = {shape: self.on_device(files, peers, shape, works[shape]) for shape in net.cases}
        for shape in net.cases:
            self.with_copies(files, shape, works[shape], channels_last=is_last_faster[shape])

    def on_device(self, files: Files, peers: dict[str, Torch], shape: Shape, work: float | None) -> bool:
        """Measure ways whose images and masks stay on the device; tell whether channels last was faster."""
        batch, half = pictures(shape), self.plan.precision
        last, first = (f"{half}, on the device, channels {order}" for order in ("last", "first"))
        bound, recorded = partial(files.bound, half, batch), partial(files.recorded, half, batch)
        entrants = {
            last: Entrant(partial(bound, channels_last=True), has_kernels=True),
            first: Entrant(partial(bound, channels_last=False), has_kernels=True),
            f"{half}, CUDA graph on the device, channels last": Entrant(partial(recorded, channels_last=True)),
            f"{half}, CUDA graph on the device, channels first": Entrant(partial(recorded, channels_last=False)),
            "fp32, on the device": Entrant(partial(files.bound, "fp32", batch)),
        }
        for side, peer in peers.items():
            make = partial(peer.eager, batch)
            entrants[f"{half}, {side}, on the device"] = Entrant(
                make, is_compared=side == SAME_MODULE, has_kernels=True
            )
        speeds = self.turns(shape, entrants, work)
        return speeds.get(last, float("inf")) <= speeds.get(first, float("inf"))

    def with_copies(self, files: Files, shape: Shape, work: float | None, *, channels_last: bool) -> None:
        """Measure ways that copy from and to the host."""
        batch, half = pictures(shape), self.plan.precision
        ways = {
            "engine": (files.engine, 1),
            "engine, 2 threads": (files.engine_by_two, BY_TWO),
            "engine, CUDA graph": (files.graphs, 1),
            "engine, CUDA graph, 2 threads": (files.graphs_by_two, BY_TWO),
            "pinned memory": (files.pinned, 1),
            "CUDA graph, pinned memory": (files.recorded_pinned, 1),
        }
        entrants = {
            f"{half}, {name}": Entrant(partial(make, half, batch, channels_last=channels_last), batches)
            for name, (make, batches) in ways.items()
        }
        entrants[f"{half}, plain onnxruntime"] = Entrant(partial(files.plain, half, batch))
        self.turns(shape, entrants, work)

    def compile(self, net: Net, number: int) -> None:
        """Leave what torch.compile makes of a net for one of its cases in its cache."""
        shape = net.cases[number]
        case, way = case_of(shape), f"{self.plan.precision}, {SAME_MODULE}"

        def measure() -> None:
            peer = self.peers(net, [SAME_MODULE])[SAME_MODULE]
            began = time.perf_counter()
            peer.compiled(pictures(shape))()
            self.row(case, way, time.perf_counter() - began, unit="s")

        self.attempt(case, way, measure)

    def compiled(self, net: Net) -> None:
        files = Files(self.paths(net), self.device, self.folder)
        peer = self.peers(net, [SAME_MODULE])[SAME_MODULE]
        half = self.plan.precision
        for shape in net.cases[:CASES_COMPILED]:
            batch, work = pictures(shape), self.multiply_adds(peer, shape)
            torch.compiler.reset()
            recorded = partial(files.recorded, half, batch, channels_last=True)
            compiled = Entrant(partial(peer.compiled, batch), has_kernels=True)
            entrants = {
                f"{half}, CUDA graph on the device, channels last": Entrant(recorded),
                f"{half}, {SAME_MODULE}, compiled, on the device": compiled,
            }
            self.turns(shape, entrants, work)

    def peers(self, net: Net, names: Iterable[str]) -> dict[str, Torch]:
        """The sides in PyTorch that are named, with the same weights."""
        model = build_net(net.architecture, CLASSES)
        return {name: Torch(PEERS[name](model), self.device) for name in names}

    def kernels(self, net: Net) -> None:
        shape = net.cases[0]
        half, case = self.plan.precision, case_of(shape)
        files = Files(self.paths(net), self.device, self.folder)

        def measure() -> None:
            found = kernel_times(files.bound(half, pictures(shape), channels_last=True), KERNEL_RUNS)
            total = sum(kernel.ms for kernel in found)
            for kernel in found[:KERNELS_SHOWN]:
                note = f"{kernel.ms / total:.3f} of the time, {kernel.calls} a run"
                self.row(case, kernel.name, kernel.ms / shape[0], unit="ms/image", note=note)
            self.row(case, "all kernels", total / shape[0], unit="ms/image", note=f"{len(found)} kinds")

        self.attempt(case, f"{half}, channels last", measure)

    def multiply_adds(self, peer: Torch, shape: Shape) -> float | None:
        """Multiply-adds of an image of a batch; None where they cannot be counted."""
        found: list[float] = []
        one = (1, *shape[1:])
        self.attempt(case_of(shape), "multiply-adds", lambda: found.append(peer.multiply_adds(pictures(one))))
        return found[0] if found else None

    def turns(self, shape: Shape, entrants: dict[str, Entrant], work: float | None) -> dict[str, float]:
        """Let ways take turns, all of them ready at a time, and tell their ms per image.

        Args:
            shape: Of the batch that they compute.
            entrants: By name; masks of all that are compared have to be those of the case's first.
            work: Multiply-adds of an image.

        Returns:
            The median ms per image of those that did not fail.
        """
        case, count = case_of(shape), shape[0]
        ready: dict[str, Way] = {}
        notes: dict[str, str] = {}
        least = self.plan.seconds / ROUNDS
        round_s = 0.0

        def prepare(name: str, entrant: Entrant) -> None:
            nonlocal round_s
            began = time.perf_counter()
            way = entrant.make()
            for _ in range(PREPARING):
                way()
            took = time.perf_counter() - began
            told = [f"ready in {took:.0f} s"] if took >= LONG_S else []
            told += [self.difference(case, masks_of(way()))] if entrant.is_compared else []
            notes[name] = "; ".join(filter(None, told))
            once = seconds(way)
            round_s += once + max(once, least)
            ready[name] = way

        for name, entrant in entrants.items():
            self.attempt(case, name, partial(prepare, name, entrant))
        found: dict[str, Spread] = {}

        def measure() -> None:
            left = self.end - ENDING_S - time.time()
            rounds = min(ROUNDS, max(1, int(left / round_s)))
            found.update(in_turns(ready, rounds, least))

        if ready:
            self.attempt(case, "in turns", measure)
        found = {name: spread.scaled(1000 / count / entrants[name].batches) for name, spread in found.items()}
        for name, spread in found.items():
            first = next(iter(found.values()))
            ratios = () if spread is first else spread.over(first).values
            self.row(case, name, *spread.values, unit="ms/image", ratios=ratios, multiply_adds=work, note=notes[name])
        if self.device != "cpu":
            for name in (name for name in found if entrants[name].has_kernels):
                self.attempt(
                    case, f"{name}, kernels alone", partial(self.kernels_alone, case, name, ready[name], count)
                )
        return {name: spread.median for name, spread in found.items()}

    def kernels_alone(self, case: str, name: str, way: Way, count: int) -> None:
        ms = sum(kernel.ms for kernel in kernel_times(way, KERNEL_RUNS)) / count
        self.row(case, f"{name}, kernels alone", ms, unit="ms/image")

    def difference(self, case: str, found: NDArray[np.generic]) -> str:
        """How far masks differ from those that were first found of a case, in words; nothing where they do not.

        Raises:
            ValueError: It is more than rounding.
        """
        share = float(np.mean(found != self.masks.setdefault(case, found)))
        words = f"{share:.2%} of the pixels have another class than by the first way" if share else ""
        if share > MOST_DIFFERING:
            raise ValueError(words)
        return words

    def shapes(self) -> None:
        net = self.plan.nets[-1]
        files = Files(self.paths(net), self.device, self.folder)
        height, width = net.cases[0][1:]
        a, b = pictures((1, height, width)), pictures((1, width, height))
        case = f"{net.name}, {height}x{width} and {width}x{height}"
        precision = self.plan.precision

        def plain() -> Callable[[NDArray[np.uint8]], object]:
            return Engine(self.path(net, precision), self.device).run

        def recorded() -> Callable[[NDArray[np.uint8]], object]:
            return partial(files.cuda_graphs(precision, 2).run, outputs=MASKS)

        for name, make in ((f"CUDA graphs, {precision}", recorded), (f"engine, {precision}", plain)):
            self.attempt(case, name, partial(self.interleave, case, name, make, a, b))

    def interleave(
        self,
        case: str,
        name: str,
        make: Callable[[], Callable[[NDArray[np.uint8]], object]],
        a: NDArray[np.uint8],
        b: NDArray[np.uint8],
    ) -> None:
        run = make()
        orders = {"in rows": (a, a, b, b), "in turns": (a, b, a, b)}
        sides = {order: partial(lambda four: [run(batch) for batch in four], four) for order, four in orders.items()}
        once = sum(map(seconds, sides.values()))  # plans that are made anew take long
        left = self.end - ENDING_S - time.time()
        found = in_turns(sides, min(ROUNDS, max(1, int((left / once - 1) / 2))), self.plan.seconds / ROUNDS)
        ratio = found["in turns"].over(found["in rows"])
        told = ", ".join(f"{spread.median * 250:.2f} ms a run {order}" for order, spread in found.items())
        self.row(case, name, *ratio.values, unit="of the time in rows", note=told)

    def servers(self, settings: Sequence[tuple[str, ...]]) -> None:
        """Ask servers, each started with some more options."""
        net, side = self.plan.nets[0], self.plan.square
        paths = self.paths(net)
        precision = self.plan.precision if self.plan.precision in paths else "fp32"  # named in the table
        batch = pictures((8, side, side))
        jpeg = encode_jpeg(batch[0], 90)
        case = f"{net.name} {precision}, {side}x{side}"
        fastest = [0.0]  # images a second

        def on_device(when: str) -> None:
            files = Files(paths, self.device, self.folder)
            made = {"as it is": files.bound, "recorded": files.recorded}
            ways = {name: way(precision, batch, channels_last=True) for name, way in made.items()}
            found = in_turns(ways, ROUNDS, 4 * self.plan.seconds / ROUNDS)
            rates = (Spread.of(8 / taken for taken in spread.values) for spread in found.values())
            best = max(rates, key=lambda rate: rate.median)
            fastest[0] = fastest[0] or best.median
            name = f"device alone, batch 8, channels last, recorded or not, {when}"
            self.row(case, name, *best.values, unit="images/s")

        def expect() -> None:
            self.difference(case, Engine(paths[precision], self.device).run(images.decode(jpeg)[None]).class_map)

        self.attempt(case, "device alone, batch 8", partial(on_device, "before"))
        self.attempt(case, "the first mask", expect)
        request = pb.SegmentRequest(encoded=jpeg, encoding=pb.CLASS_MAP_ENCODING_ZSTD)
        options = ["--device", self.device, "--warm", f"{side}x{side}", "--max-queue", "256"]
        for more in settings:
            if self.device == "cpu" and "--cuda-graphs" in more:
                continue
            name = f"server, {' '.join(more) or 'defaults'}"
            start = partial(serve, paths[precision], *options, *more)
            measure = partial(self.serve, case, name, start, request.SerializeToString(), fastest[0])
            self.attempt(case, name, measure)
        self.attempt(case, "device alone, batch 8", partial(on_device, "after"))

    def serve(
        self,
        case: str,
        name: str,
        start: Callable[..., AbstractContextManager[tuple[str, object]]],
        request: bytes,
        on_device: float,
    ) -> None:
        clients, load_s = self.plan.clients, self.plan.load_s
        http_port = free_port()
        with start("--http-port", str(http_port)) as (address, _):
            difference = self.difference(case, mask_of(address, request))
            found = load(address, request, clients, load_s, warm_s=0.7 * load_s, processes=LOADING_PROCESSES)
            with urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=30) as answer:
                stages = stages_of(answer.read().decode())
        if found.failed:
            raise RuntimeError(f"{found.failed} requests failed")
        note = "; ".join(filter(None, [f"{clients} clients", stages, difference]))
        if on_device:
            note = f"{found.rate / on_device:.3f} of the device alone; {note}"
        self.row(case, name, found.rate, unit="images/s", note=note)

    def path(self, net: Net, precision: str) -> Path:
        return file_of(self.folder, net, precision)

    def paths(self, net: Net) -> dict[str, Path]:
        """The files that were exported."""
        paths = {precision: self.path(net, precision) for precision in PRECISIONS}
        return {precision: path for precision, path in paths.items() if path.exists()}


def file_of(folder: Path, net: Net, precision: str) -> Path:
    return folder / f"{net.name}-{precision}.onnx"


def missing(folder: Path, net: Net) -> list[FilePrecision]:
    """The precisions in which a net is still to be exported."""
    return [precision for precision in PRECISIONS if not file_of(folder, net, precision).exists()]


def stages_of(metrics: str) -> str:
    """What images took in a server's stages since its start, how many shared a run, and each process's share of them.

    Args:
        metrics: The server's metrics, as Prometheus reads them.
    """
    sums: dict[str, float] = {}
    images: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics):
        for name, labels, value, *_ in family.samples:
            key = f"{name} {labels.get('stage', '')}".rstrip()
            sums[key] = sums.get(key, 0.0) + value
            if name == "fcnseg_images_total":
                process = labels.get("process", "")
                images[process] = images.get(process, 0.0) + value

    def mean(name: str, stage: str = "") -> float:
        total, count = (sums[f"{name}_{kind} {stage}".rstrip()] for kind in ("sum", "count"))
        return total / max(1.0, count)

    stages = ("queue", "decode", "infer", "encode")
    told = [f"{mean('fcnseg_batch_images'):.1f} images a run"]
    told += [f"{stage} {1000 * mean('fcnseg_stage_seconds', stage):.2f} ms" for stage in stages]
    if len(images) > 1:
        told += [f"shares of the processes {' '.join(f'{n / sum(images.values()):.2f}' for n in images.values())}"]
    return ", ".join(told)


def mask_of(address: str, request: bytes) -> NDArray[np.generic]:
    """The class map that a server answers with, (1, H, W)."""
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        answer = pb.SegmentResponse.FromString(channel.unary_unary(SEGMENT)(request, timeout=60)).class_map
    return masks.decode(answer.data, Encoding.ZSTD, shape=(answer.height, answer.width), dtype=np.uint8)[None]


def case_of(shape: Shape) -> str:
    """A batch and its images' size, in words."""
    return f"{shape[0]} x {shape[1]}x{shape[2]}"


def pictures(shape: Shape) -> NDArray[np.uint8]:
    """Images with regions and noise, (N, H, W, 3)."""
    random = np.random.default_rng(0)
    count, height, width = shape
    coarse = random.integers(0, 200, (count, -(-height // 32), -(-width // 32), 3), np.uint8)
    regions = coarse.repeat(32, 1).repeat(32, 2)[:, :height, :width]
    return regions + random.integers(0, 50, (*shape, 3), np.uint8)
