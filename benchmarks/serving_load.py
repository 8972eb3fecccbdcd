"""What does serving cost beside running the model?

Run it: python benchmarks/serving_load.py [QUESTION...] [--rounds N] [--seconds N] [--threads N] [--small MODEL]
       [--json FILE]

Needs h2load (Debian: apt install nghttp2-client). Every figure stands beside a plain loop over onnxruntime's
session.run on the same file, in the same run, with the same settings, on one 480x360 photograph; the loop runs before
and after each load, and the table has medians over the rounds with their range. The server is `fcnseg serve` with its
defaults, but without a line a request in its log, in a process of its own on the same cores. Questions:

throughput  raw pixels in and out, 1 and 8 clients (h2load, whose count of bytes shows that all answers were whole):
            requests a second over the loop's.
codec       JPEG in, zstd out, 8 clients: against T / (T + C), T being the loop's time a frame and C the time that one
            core takes to decode the JPEG and encode the mask, divided by the cores.
latency     one client: median time of a request less that of session.run, raw and JPEG in, PNG out; and what of it the
            least possible gRPC server takes too (bare_server.py). The three take turns of a second each.
overload    requests at random (Poisson) at twice the rate that 8 clients reach, each with a deadline of ten service
            times: what became of them, and the memory. Goodput stands beside that rate, measured before and after.
idle        a MobileNetV2 FCN: seconds from start to SERVING with one declared size, and resident memory.
"""

import argparse
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import numpy as np
from grpc_load import SEGMENT
from h2load import Request, h2load, require_h2load
from loop import HEIGHT, SMALL, WIDTH, Loop, codec_seconds, photograph
from nets import build
from reporting import Report, Spread, add_json_option, chosen, in_turns, resident_mib
from served import serve_barely, serve_beside_loop

import fcnseg
from fcnseg import images, masks
from fcnseg.cores import usable_cores
from fcnseg.masks import Encoding
from fcnseg.pictures import encode_jpeg
from fcnseg.v1 import segmentation_pb2 as pb

QUESTIONS = ("throughput", "codec", "latency", "overload", "idle")
FRAMES = f"One photograph of {WIDTH}x{HEIGHT}, beside session.run in a loop"
THROUGHPUT = ("net", "requests", "session.run, ms", "T / (T + C)", "server, requests/s", "ratio")
CEILING = (
    "T is session.run's time a frame, C the time in which one core decodes the JPEG and encodes the mask, divided by"
    " the cores. The ratio is requests a second over 1 / T for raw pixels, and over 1 / (T + C) for files."
)
LATENCY = ("net", "requests", "session.run, ms", "bare server, ms", "server, ms", "more, ms", "more than bare, ms")
LATENCY_NOTE = (
    "The bare server reads a request, decodes, runs, encodes and answers; it has no queue, limits or deadlines."
)
TURN_S = 1.0
OVERLOAD = (
    "net",
    "capacity, requests/s",
    "deadline, ms",
    "requests",
    *("OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"),
    "goodput over capacity",
    "p99 of the answered, ms",
    "memory before, MiB",
    "at most, MiB",
    "load's share of the CPU",
)
OVERLOAD_ROUNDS, CAPACITY_ROUNDS = 15, 5
"""How many rounds' time the overload lasts, and its ceiling is measured."""
SERVICE_TIMES = 10


@dataclass(frozen=True)
class Case:
    """A request, and what the answer's class map must be."""

    request: bytes
    expected: bytes


def load(address: str, case: Case, clients: int, requests: int) -> float:
    """Requests a second."""
    return h2load(address, Request(SEGMENT, case.request), clients, requests, len(case.expected))


@contextmanager
def calling(address: str) -> Iterator["grpc.UnaryUnaryMultiCallable[bytes, bytes]"]:
    """Call Segment with bytes, and get bytes."""
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        yield channel.unary_unary(SEGMENT)


def check(address: str, case: Case) -> None:
    """See that the answer is the loop's mask."""
    with calling(address) as call:
        answer = pb.SegmentResponse.FromString(call(case.request, timeout=60))
    if answer.class_map.data != case.expected:
        raise SystemExit("the server's mask is not that of session.run")


class Benchmark:
    """The questions, on one model."""

    def __init__(self, report: Report, name: str, model: Path, arguments: argparse.Namespace) -> None:
        self.report, self.name, self.model = report, name, model
        self.threads, self.rounds, self.seconds = arguments.threads, arguments.rounds, arguments.seconds
        photo = photograph()
        self.jpeg = encode_jpeg(photo, quality=90)
        self.label_map = fcnseg.load(model, "cpu").info.label_map
        self.loop = Loop(model, self.threads, photo)
        self.jpeg_loop = Loop(model, self.threads, images.decode(self.jpeg))
        raw = pb.RawImage(height=HEIGHT, width=WIDTH, rgb=photo.tobytes())
        self.raw = self._case(self.loop, Encoding.RAW, pb.SegmentRequest(raw=raw, encoding=pb.CLASS_MAP_ENCODING_RAW))
        self.zstd = self._case(
            self.jpeg_loop,
            Encoding.ZSTD,
            pb.SegmentRequest(encoded=self.jpeg, encoding=pb.CLASS_MAP_ENCODING_ZSTD),
        )
        self.png = self._case(
            self.jpeg_loop, Encoding.PNG, pb.SegmentRequest(encoded=self.jpeg, encoding=pb.CLASS_MAP_ENCODING_PNG)
        )

    def _case(self, loop: Loop, encoding: Encoding, request: pb.SegmentRequest) -> Case:
        return Case(request.SerializeToString(), masks.encode(loop.class_map, encoding, self.label_map))

    def _serve(self) -> AbstractContextManager[tuple[str, subprocess.Popen[str]]]:
        return serve_beside_loop(self.model, self.threads)

    def throughput(self) -> None:
        with self._serve() as (address, _):
            check(address, self.raw)
            for clients in (1, 8):
                frames, rates, ratios = [], [], []
                for _ in range(self.rounds):
                    times, rate = self.loop.around(self.seconds, self._load(address, self.raw, clients))
                    frame = statistics.fmean(times)
                    frames.append(frame * 1000)
                    rates.append(rate)
                    ratios.append(rate * frame)
                table = self.report.table("throughput", FRAMES, THROUGHPUT, CEILING)
                what = f"raw, {clients} client{'s' * (clients > 1)}"
                table.add(self.name, what, Spread.of(frames), None, Spread.of(rates), Spread.of(ratios))

    def _load(self, address: str, case: Case, clients: int) -> Callable[[float], float]:
        """Return what measures requests a second for as long as the loop's side takes, told the loop's frame."""
        return lambda frame: load(address, case, clients, max(2 * clients, int(self.seconds / frame)))

    def codec(self) -> None:
        cores = usable_cores()
        with self._serve() as (address, _):
            check(address, self.zstd)
            frames, rates, ratios, ceilings = [], [], [], []
            for _ in range(self.rounds):
                times, rate = self.jpeg_loop.around(self.seconds, self._load(address, self.zstd, 8))
                frame = statistics.fmean(times)
                codec = codec_seconds(self.jpeg, self.jpeg_loop.class_map, Encoding.ZSTD, self.label_map) / cores
                ceiling = frame / (frame + codec)
                frames.append(frame * 1000)
                rates.append(rate)
                ceilings.append(ceiling)
                ratios.append(rate * frame / ceiling)
        table = self.report.table("throughput", FRAMES, THROUGHPUT, CEILING)
        table.add(self.name, "JPEG to zstd, 8 clients", *map(Spread.of, (frames, ceilings, rates, ratios)))

    def latency(self) -> None:
        with (
            self._serve() as (address, _),
            serve_barely(self.model, self.threads) as (bare_address, _),
            calling(address) as call,
            calling(bare_address) as bare_call,
        ):
            for what, case, loop in (("raw", self.raw, self.loop), ("JPEG to PNG", self.png, self.jpeg_loop)):
                check(address, case)
                check(bare_address, case)
                sides: dict[str, Callable[[], object]] = {
                    "session.run": loop.run,
                    "bare": partial(bare_call, case.request),
                    "server": partial(call, case.request),
                }
                turn = min(TURN_S, self.seconds)
                found = in_turns(sides, round(self.rounds * self.seconds / turn), turn)
                runs, bare, waits = ([second * 1000 for second in side.values] for side in found.values())
                more, more_than_bare = (
                    [wait - least for wait, least in zip(waits, side, strict=True)] for side in (runs, bare)
                )
                table = self.report.table("latency", "What a request takes beside session.run", LATENCY, LATENCY_NOTE)
                table.add(self.name, f"{what}, 1 client", *map(Spread.of, (runs, bare, waits, more, more_than_bare)))

    def overload(self) -> None:
        with self._serve() as (address, process), calling(address) as call:
            check(address, self.raw)
            before = self._capacity(address)
            deadline = SERVICE_TIMES / before
            outcomes: Counter[str] = Counter()
            waits: list[float] = []
            resident = [resident_mib(process.pid)]
            lock = threading.Lock()

            def note(began: float, future: "grpc.Future[bytes]") -> None:
                with lock:
                    code = future.code().name  # type: ignore[attr-defined] # the future is a call, too
                    outcomes[code] += 1
                    if code == "OK":
                        waits.append(time.perf_counter() - began)

            random = np.random.default_rng(0)
            busy, began = time.process_time(), time.perf_counter()
            due = began
            pending: list[grpc.Future[bytes]] = []
            while due < began + OVERLOAD_ROUNDS * self.seconds:
                due += random.exponential(1 / (2 * before))
                time.sleep(max(0.0, due - time.perf_counter()))
                sent = time.perf_counter()
                future = call.future(self.raw.request, timeout=deadline)
                future.add_done_callback(partial(note, sent))
                pending = [f for f in pending if not f.done()] + [future]
                if len(resident) < (sent - began):
                    resident.append(resident_mib(process.pid))
            for unanswered in pending:
                unanswered.exception()
            seconds = time.perf_counter() - began
            own = (time.process_time() - busy) / seconds / usable_cores()
            resident.append(resident_mib(process.pid))
            capacity = (before + self._capacity(address)) / 2
        table = self.report.table("overload", "Twice the requests that a server can answer", OVERLOAD)
        table.add(
            self.name,
            before,
            deadline * 1000,
            outcomes.total(),
            *(outcomes[code] for code in OVERLOAD[4:7]),
            outcomes["OK"] / seconds / capacity,
            float(np.quantile(waits, 0.99)) * 1000,
            resident[0],
            max(resident),
            own,
        )

    def _capacity(self, address: str) -> float:
        """Requests a second of 8 clients, measured for longer than a round: all of the answer depends on it."""
        frame = statistics.fmean(self.loop.around(self.seconds, lambda _: None)[0])
        return load(address, self.raw, 8, max(16, int(CAPACITY_ROUNDS * self.seconds / frame)))

    def idle(self) -> None:
        starts, resident = [], []
        for _ in range(self.rounds):
            began = time.perf_counter()
            with self._serve() as (_, process):
                starts.append(time.perf_counter() - began)
                time.sleep(1)
                resident.append(resident_mib(process.pid))
        columns = ("net", "seconds from start to SERVING", "resident when idle, MiB")
        self.report.table("idle", "A server with one declared size", columns).add(
            self.name, Spread.of(starts), Spread.of(resident)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each side in each round (4)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="within an operator (cores)")
    parser.add_argument("--small", type=Path, default=SMALL, help="the small net (results/camvid-fcn8s.onnx)")
    add_json_option(parser)
    arguments = parser.parse_args()
    asked = chosen(parser, arguments.questions, QUESTIONS)
    require_h2load()
    report = Report(arguments.json)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        heavy = Benchmark(report, "heavy: ResNet-50 FCN-8s", build("resnet50", folder), arguments)
        small = Benchmark(report, f"small: {arguments.small.stem}", arguments.small, arguments)
        for question in ("throughput", "codec", "latency"):
            if question in asked:
                getattr(small, question)()
                getattr(heavy, question)()
        if "overload" in asked:
            heavy.overload()
        if "idle" in asked:
            Benchmark(report, "MobileNetV2 FCN-8s", build("mobilenet_v2", folder), arguments).idle()
    report.write()


if __name__ == "__main__":
    main()
