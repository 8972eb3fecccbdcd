"""What does a folder cost beside running the model?

Run it: python benchmarks/folder.py [QUESTION...] [--rounds N] [--images N] [--threads N] [--small MODEL]
        [--json FILE]

Every figure stands beside a plain loop over onnxruntime's session.run on images that are decoded already, in the same
run. The loop has a thread a core; the job runs as it does by default, two images at a time on half of the cores each.
Questions:

speed   480x360 JPEGs in, PNG masks out, by `fcnseg segment` in a process of its own, but for its start: images a second
        against T / (T + C), T being the loop's time a frame and C the time that one core takes to decode the JPEG and
        encode the mask, divided by the cores.
server  the same through `fcnseg serve` on the same cores.
memory  resident memory from image 500 to the end of 10,000 (--many).
start   seconds from the command's start to its first mask.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loop import HEIGHT, SMALL, WIDTH, Loop, codec_seconds, photograph
from nets import build
from reporting import Report, Spread, add_json_option, chosen, resident_mib
from served import serve_beside_loop

import fcnseg
from fcnseg import images, masks
from fcnseg.cores import usable_cores
from fcnseg.masks import Encoding
from fcnseg.pictures import encode_jpeg

QUESTIONS = ("speed", "server", "memory", "start")
TITLE = f"Jobs of JPEGs in and PNG masks out, {WIDTH}x{HEIGHT}"
COLUMNS = ("net", "job", "session.run, ms", "T / (T + C)", "images/s", "ratio")
NOTE = (
    "T is session.run's time a frame, C the time in which one core decodes the JPEG and encodes the mask, divided by"
    " the cores; the ratio is images a second over 1 / (T + C)."
)
SETTLED = 500


class Benchmark:
    """The questions, on one model."""

    def __init__(self, report: Report, name: str, model: Path, arguments: argparse.Namespace, folder: Path) -> None:
        self.report = report
        self.name, self.model, self.arguments, self.folder = name, model, arguments, folder
        photo = photograph()
        self.jpeg = encode_jpeg(photo, quality=90)
        self.loop = Loop(model, arguments.threads, images.decode(self.jpeg))
        self.label_map = fcnseg.load(model, "cpu").info.label_map
        self.expected = masks.encode(self.loop.class_map, Encoding.PNG, self.label_map)

    def speed(self) -> None:
        """Compare a local job with the loop."""
        self._compare("folder", [str(self.model), "--device", "cpu", "--no-tuned"])

    def server(self) -> None:
        """Compare a job through a server with the loop."""
        with serve_beside_loop(self.model, self.arguments.threads) as (address, _):
            self._compare("folder through a server", [self.model.stem, "--server", address])

    def memory(self) -> None:
        """See how memory grows over a long list."""
        source = self._images(self.arguments.many)
        seen: list[tuple[int, float]] = []
        with tempfile.TemporaryDirectory(dir=self.folder) as output, self._start(source, output) as process:
            while process.poll() is None:
                time.sleep(0.2)
                if process.poll() is None:
                    seen.append((_lines(Path(output)), resident_mib(process.pid)))
            _require_success(process)
        first = min(SETTLED, self.arguments.many // 4)
        settled = [resident for done, resident in seen if done >= first]
        columns = ("net", f"MiB after {first} images", "at most, MiB", "more, MiB")
        table = self.report.table("memory", f"Resident memory of a job of {self.arguments.many} images", columns)
        table.add(self.name, settled[0], max(settled), max(settled) - settled[0])

    def start(self) -> None:
        """Time the way to the first mask."""
        source, times = self._images(1), []
        for _ in range(self.arguments.rounds):
            with tempfile.TemporaryDirectory(dir=self.folder) as output:
                began = time.perf_counter()
                with self._start(source, output) as process:
                    while not list(Path(output).glob("*.png")):
                        if process.poll() is not None:
                            raise SystemExit("the job ended without a mask")
                        time.sleep(0.005)
                    times.append(time.perf_counter() - began)
                    process.wait()
        table = self.report.table("start", "From the command's start to its first mask", ("net", "seconds"))
        table.add(self.name, Spread.of(times))

    def _compare(self, what: str, model: list[str]) -> None:
        cores, count = usable_cores(), self.arguments.images
        source = self._images(count)
        frames, rates, ceilings, ratios = [], [], [], []
        for _ in range(self.arguments.rounds):
            times, rate = self.loop.around(self.arguments.seconds, lambda _: self._rate(source, model))
            frame = statistics.fmean(times)
            codec = codec_seconds(self.jpeg, self.loop.class_map, Encoding.PNG, self.label_map) / cores
            frames.append(frame * 1000)
            rates.append(rate)
            ceilings.append(frame / (frame + codec))
            ratios.append(rate * (frame + codec))
        measured = (Spread.of(values) for values in (frames, ceilings, rates, ratios))
        self.report.table("speed", TITLE, COLUMNS, NOTE).add(self.name, what, *measured)

    def _rate(self, source: Path, model: list[str]) -> float:
        """Images a second of a job, from its first mask to its last."""
        with tempfile.TemporaryDirectory(dir=self.folder) as output:
            with self._start(source, output, model) as process:
                _require_success(process)
            masks = list(Path(output).glob("*.png"))
            written = sorted(path.stat().st_mtime_ns for path in masks)
            if len(masks) != self.arguments.images or {path.read_bytes() for path in masks} != {self.expected}:
                raise SystemExit("a mask is missing, or is not that of session.run")
            return (len(written) - 1) / (written[-1] - written[0]) * 1e9

    def _start(self, source: Path, output: str, model: list[str] | None = None) -> "subprocess.Popen[bytes]":
        options = model or [str(self.model), "--device", "cpu", "--no-tuned"]
        command = [sys.executable, "-m", "fcnseg", "segment", options[0], str(source), output, *options[1:]]
        return subprocess.Popen([*command, "--no-report"], stdout=subprocess.DEVNULL)

    def _images(self, count: int) -> Path:
        folder = self.folder / f"{count} images"
        folder.mkdir(exist_ok=True)
        for i in range(count):
            (folder / f"{i:06d}.jpg").write_bytes(self.jpeg)
        return folder


def _lines(output: Path) -> int:
    manifest = output / "manifest.jsonl"
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0


def _require_success(process: "subprocess.Popen[bytes]") -> None:
    if process.wait():
        raise SystemExit(f"{process.args!r} failed")


def main() -> None:
    """Answer the questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of the loop in each round (4)")
    parser.add_argument("--images", type=int, default=150, help="in each round (150)")
    parser.add_argument("--many", type=int, default=10_000, help="images for the memory question (10000)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="within an operator (cores)")
    parser.add_argument("--small", type=Path, default=SMALL, help="the small net (results/camvid-fcn8s.onnx)")
    add_json_option(parser)
    arguments = parser.parse_args()
    asked = chosen(parser, arguments.questions, QUESTIONS)
    report = Report(arguments.json)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small = Benchmark(report, f"small: {arguments.small.stem}", arguments.small, arguments, folder)
        for question in ("speed", "server"):
            if question in asked:
                heavy = Benchmark(report, "heavy: ResNet-50 FCN-8s", build("resnet50", folder), arguments, folder)
                getattr(small, question)()
                getattr(heavy, question)()
        for question in ("memory", "start"):
            if question in asked:
                getattr(small, question)()
    report.write()


if __name__ == "__main__":
    main()
