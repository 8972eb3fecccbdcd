"""How does `fcnseg serve` compare with the model servers that people use?

Run it: python benchmarks/peers/environments.py, once, then
        python benchmarks/serving_peers.py [--peers A,B] [--nets small,heavy] [--rounds N] [--seconds N] [--json FILE]

Needs h2load (Debian: apt install nghttp2-client). Every server runs the same ONNX file in onnxruntime with the same
settings (session.py) by the same Python, in a process of its own on the same cores, and writes no line a request. The
peers run one image at a time, and so does fcnseg with `--runners 1`; by default it runs two while images wait, with
half of the threads each. It serves once more as `fcnseg tune` found best for many clients before the first round. A
request is one 480x360 photograph as pixels, an answer its class map; where the peer speaks the Open Inference Protocol,
the bytes are the same for all. In each round each server is started, asked until its answer is session.run's own class
map, byte for byte, warmed, loaded by 1 and by 8 clients, and stopped. A plain loop over session.run runs before and
after each load; a server's figure is its rate over the loop's. Prints a Markdown table of medians and ranges.
"""

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
from h2load import Request, h2load, require_h2load
from loop import HEIGHT, SMALL, WIDTH, Loop, photograph
from nets import build
from peers.sides import OWN, SIDES, Side
from reporting import Report, Spread, add_json_option, ordered
from served import ON_THIS_CHECKOUT

from fcnseg.cores import usable_cores
from fcnseg.tuning import Settings, tuning_path

CLIENTS = (1, 8)
PEERS = ("nvidia-pytriton", "kserve", "mosec", "litserve")
READY_S = 120.0
TUNE_ROUNDS = 30
"""How many rounds' time `fcnseg tune` has: the two minutes of its default, by the default here."""


@dataclass(frozen=True)
class Figure:
    """What one load of one round gave.

    Attributes:
        net: `small` or `heavy`.
        side: The server's name.
        round: Which round, from 0.
        clients: Callers at a time, each of which waits for its answer.
        loop_s: Mean seconds of the loop's runs around the load.
        rate: Answers a second.
        ratio: The rate over the loop's.
    """

    net: str
    side: str
    round: int
    clients: int
    loop_s: float
    rate: float
    ratio: float


class Comparison:
    """The servers, on one model.

    Attributes:
        net: What the model is called.
        tuned: What `fcnseg tune` found for it; empty where no side asks.
    """

    def __init__(self, net: str, model: Path, sides: list[Side], arguments: argparse.Namespace) -> None:
        self.net, self._model, self._sides = net, model, sides
        self.tuned = ""
        self._threads, self._seconds = arguments.threads, arguments.seconds
        self._photo = photograph()
        self._loop = Loop(model, self._threads, self._photo)
        self._expected = self._loop.class_map.tobytes()
        if any(side.is_tuned for side in sides):
            command = [str(OWN.python), "-m", "fcnseg", "tune", str(model), "--size", f"{HEIGHT}x{WIDTH}"]
            command += ["--device", "cpu", "--seconds", str(TUNE_ROUNDS * self._seconds)]
            subprocess.run(command, check=True, stdout=sys.stderr, env=ON_THIS_CHECKOUT)
            self.tuned = str(Settings(**json.loads(tuning_path(model).read_bytes())["settings"]))

    def measure(self, turn: int) -> list[Figure]:
        """Measure every server once."""
        return [figure for side in ordered(self._sides, turn) for figure in self._measure_one(side, turn)]

    def _measure_one(self, side: Side, turn: int) -> list[Figure]:
        request = side.face.request(self._model.stem, self._photo)
        found = []
        with side.serve(self._model, self._threads, (HEIGHT, WIDTH)) as (address, process):
            self._wait(side, address, request, process)
            h2load(address, request, max(CLIENTS), 2 * max(CLIENTS), len(self._expected))
            for clients in CLIENTS:

                def load(frame: float, clients: int = clients) -> float:
                    requests = max(2 * clients, int(self._seconds / frame))
                    return h2load(address, request, clients, requests, len(self._expected))

                times, rate = self._loop.around(self._seconds, load)
                mean = statistics.fmean(times)
                found.append(Figure(self.net, side.name, turn, clients, mean, rate, rate * mean))
                text = f"{self.net}, round {turn}, {side.name}, {clients} clients: {rate:.1f} /s, {rate * mean:.3f}"
                print(text, file=sys.stderr)
        return found

    def _wait(self, side: Side, address: str, request: Request, process: subprocess.Popen[str]) -> None:
        """Ask until the server answers, and see that its answer is the loop's class map."""
        end = time.monotonic() + READY_S
        while True:
            try:
                answer = side.face.ask(address, request)
            except (grpc.RpcError, OSError) as error:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{side.name} does not answer: {error}") from error
                time.sleep(0.2)
            else:
                break
        if answer != self._expected:
            raise SystemExit(f"{side.name}'s class map is not that of session.run")


def tell(report: Report, comparisons: list[Comparison], sides: list[Side], figures: list[Figure]) -> None:
    """Put the figures of all rounds into the report, a table for each net."""
    for comparison in comparisons:
        net = comparison.net
        loads = [f"{clients} client{'s' * (clients > 1)}" for clients in CLIENTS]
        columns = [f"{load}, {what}" for load in loads for what in ("requests/s", "of session.run")]
        frames = Spread.of(figure.loop_s * 1000 for figure in figures if figure.net == net)
        left_out = ", ".join(side.name for side in SIDES if side not in sides)
        note = f"session.run alone takes {frames} ms. {_versions(sides)}"
        note += f" Left out: {left_out}." if left_out else ""
        note += f" `fcnseg tune` found: {comparison.tuned}." if comparison.tuned else ""
        table = report.table(net, f"Servers of the {net} net", ("server", "protocol", *columns), note)
        for side in sides:
            cells: list[Spread] = []
            for clients in CLIENTS:
                own = [f for f in figures if (f.net, f.side, f.clients) == (net, side.name, clients)]
                cells += [Spread.of(f.rate for f in own), Spread.of(f.ratio for f in own)]
            table.add(side.title, side.face.title, *cells)


def _versions(sides: list[Side]) -> str:
    """What the peers are, by the packages that their environments are made of, and by which Python all run."""
    made = {side.environment.name: side.environment for side in sides}
    found = {name: version for environment in made.values() for name, version in environment.versions().items()}
    shown = [f"{name} {found[name]}" for name in PEERS if name in found]
    pythons = ", ".join(sorted({environment.python_version() for environment in made.values()}))
    return f"Peers: {', '.join(shown)}. All run by Python {pythons}."


def choose_sides(names: str | None) -> list[Side]:
    """The servers asked for; those without an environment are left out, with a line that says how to make it.

    Raises:
        SystemExit: There is no such server, or none is left.
    """
    asked = names.split(",") if names else [side.name for side in SIDES]
    if unknown := set(asked) - {side.name for side in SIDES}:
        known = ", ".join(side.name for side in SIDES)
        raise SystemExit(f"no peer {', '.join(sorted(unknown))}; there are {known}")
    found = []
    for side in SIDES:
        if side.name in asked and side.environment.is_made:
            found.append(side)
        elif side.name in asked:
            name = side.environment.name
            print(
                f"{side.name} is left out: make its environment by python benchmarks/peers/environments.py {name}",
                file=sys.stderr,
            )
    if not any(side.is_peer for side in found):
        raise SystemExit("no peer is left to compare with; benchmarks/README.md tells how to make their environments")
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="A,B", help=f"of {', '.join(side.name for side in SIDES)} (all)")
    parser.add_argument("--nets", default="small,heavy", help="of small, heavy (both)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load, and of the loop around it (4)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="within an operator (cores)")
    parser.add_argument("--small", type=Path, default=SMALL, metavar="MODEL", help="(results/camvid-fcn8s.onnx)")
    parser.add_argument("--heavy", type=Path, metavar="MODEL", help="(an FCN-8s of ResNet-50 with random weights)")
    add_json_option(parser)
    arguments = parser.parse_args()
    if unknown := set(arguments.nets.split(",")) - {"small", "heavy"}:
        parser.error(f"no net {', '.join(sorted(unknown))}; there are small, heavy")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    require_h2load()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives this process
    sides = choose_sides(arguments.peers)
    report = Report(arguments.json)
    with tempfile.TemporaryDirectory() as folder:
        models = {}
        for net in arguments.nets.split(","):
            given = arguments.small if net == "small" else arguments.heavy
            # A copy, since settings that are found for a model stand in a file beside it.
            models[net] = Path(shutil.copy(given, folder)) if given else build("resnet50", Path(folder))
        comparisons = [Comparison(net, model, sides, arguments) for net, model in models.items()]
        figures = [figure for turn in range(arguments.rounds) for side in comparisons for figure in side.measure(turn)]
    tell(report, comparisons, sides, figures)
    report.write()


if __name__ == "__main__":
    main()
