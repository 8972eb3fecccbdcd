"""How fast is the model on a GPU, by which way, and how much of that does the server keep?

Run it: python benchmarks/gpu.py [--device cuda:0] [--budget SECONDS] [--sections NAME...] [--files FOLDER]
        [--json FILE]

Takes as long as `--budget` says at most. Nets have random weights and 21 classes. Ways that are compared take turns, in
rounds; a figure is the median of the rounds' medians, with their range, and a ratio the median of those within a round.
Each section runs in a process of its own and has a time of its own; one for which less than half of that is left is
left out. What fails in one, and what there was no time for, stands in the table, and the others go on. Every row is
printed and kept as soon as it is known, and the end tells in short what came of it, also where it comes by SIGTERM or
Ctrl-C. `--device cpu --quick` runs all of it on the CPU with a tiny net in single precision, to see that it runs;
CUDA's settings mean nothing there. The sections, in their order:

ceiling     multiply-adds a second of one large matrix product in half precision: what shares are taken of; once more
            at the end
export ...  the nets' files, in half and single precision, side by side, before the first section that needs them; those
            in FOLDER are taken as they are
server      fcnseg serve with VGG16, in two processes and in one: JPEG in, zstd out, 32 clients, over the fastest run
            on the device alone, which is measured before and after; the servers follow each other
NET         ms per image of each way, at each size and batch, its time over that of the first of its turns, and its
            share of the ceiling. First those whose images and masks stay on the device: the file, and PyTorch, on the
            module that the file was exported from and as users of torchvision and segmentation_models_pytorch write
            it, where cuDNN searches for each layer's kernel (cudnn.benchmark). Then those that copy from and to the
            host, in the layout that was faster before. "Kernels alone" is what the device computes for, without the
            gaps between launches
placement   what ran on which provider when the files were opened; a net that is not whole on the device fails here
shapes      two sizes in turns (A B A B) over the same runs in rows (A A B B): 1.0 where no plan is made anew
kernels NET which of the device's kernels the time goes to, at the first size, by torch's profiler
compile ... what torch.compile makes of the modules that the files were exported from, side by side, for its cache
compiled NET
            ms per image of that module beside the file on the device
settings    what `server` measures, of servers with other settings; only where it is asked for
"""

import argparse
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from gpu_sections import CASES_COMPILED, CLASSES, ENDING_S, FULL, QUICK, SERVERS, Net, Plan, Row, missing, run_section
from reporting import Report, Spread, add_json_option, number

from fcnseg.devices import cudnn_version, resolve_device

COLUMNS = ("section", "case", "way", "measured", "unit", "over the first's", "of the ceiling", "note")
AGAIN = " after"
"""Ends the name of a section that is measured once more."""
LEAST_SHARE = 0.5
"""Of a section's time, for it to be begun."""
COMPILE_THREADS = 4
"""Of torch.compile in each of the processes that it runs in side by side."""
SLOW_TO_IMPORT = ["training.export", "torch.utils.flop_counter", "torch.profiler", "grpc"]
"""Modules that are imported once for all sections' processes."""


class Bench:
    """Runs the sections, and reports what they find.

    Args:
        arguments: The command line.
        folder: Where the nets' files go.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.plan = QUICK if arguments.quick else FULL
        self.arguments, self.folder = arguments, folder
        self.end = time.time() + arguments.budget
        self.ceiling: float | None = None
        self.rows: list[Row] = []
        self.took: dict[str, float] = {}
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(COMPILE_THREADS))
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(SLOW_TO_IMPORT)
        device = arguments.device
        gpu = None if device == "cpu" else torch.cuda.get_device_name(int(device.partition(":")[2]))
        self.report = Report(arguments.json, gpu)
        note = f"Ratios are to the first way that took the same turns. cuDNN {cudnn_version() or 'is not there'}."
        self.table = self.report.table("gpu", f"Nets of {CLASSES} classes with random weights", COLUMNS, note)

    def run(self) -> None:
        asked = self.arguments.sections
        known = sections_of(self.plan, self.arguments.device)
        wanted = [section for section in known if section.is_asked_for(asked)]
        exports = [
            f"export {net.name} {precision}"
            for net in dict.fromkeys(net for section in wanted for net in section.nets)
            for precision in missing(self.folder, net)
        ]
        compiles = [
            f"compile {net.name} {number}"
            for section in wanted
            if section.kind == "compiled"
            for net in section.nets
            for number in range(len(net.cases[:CASES_COMPILED]))
        ]
        try:
            for section in wanted:
                if section.nets and exports:
                    self.side_by_side(exports, "export")
                    exports = []
                if section.kind == "compiled" and compiles:
                    self.side_by_side(compiles, "compile")
                    compiles = []
                self.side_by_side([section.name], section.kind)
        finally:
            self.report.write()
            self.tell_in_short()

    def tell_in_short(self) -> None:
        """Print what came of each section, a line each."""
        print("\nIn short:")
        for name in dict.fromkeys(row.section for row in self.rows):
            rows = [row for row in self.rows if row.section == name]
            measured, without = [row for row in rows if row.values], [row for row in rows if not row.values]
            took = f" in {self.took[name]:.0f} s" if name in self.took else ""
            print(f"- {name}: {len(measured)} measured{took}" + (f", {len(without)} not" if without else ""))
            for row in measured if name in {*SERVERS, "ceiling"} else []:
                told = row.note.partition(";")[0] if name in SERVERS else ""
                print(f"  {row.way}: {number(statistics.median(row.values))} {row.unit} {told}".rstrip())
            for row in without:
                print(f"  {' '.join(filter(None, (row.case, row.way, row.note)))}")
        sys.stdout.flush()

    def add(self, row: Row) -> None:
        """Put a row into the table, and keep it: what is known so far outlives whatever ends this program."""
        self.rows.append(row)
        measured = Spread.of(row.values) if len(row.values) > 1 else row.values[0] if row.values else None
        ratio = Spread.of(row.ratios) if row.ratios else None
        if row.section == "ceiling" and row.values:
            self.ceiling = statistics.median(row.values) * 1e12
        share = None
        if self.ceiling and row.values and row.multiply_adds:
            share = row.multiply_adds / (statistics.median(row.values) / 1000) / self.ceiling
        note = row.note.replace("|", "/")
        self.table.add(row.section, row.case, row.way, measured, row.unit, ratio, share, note)
        self.report.keep()

    def side_by_side(self, names: Sequence[str], kind: str) -> None:
        """Run sections, each in a process of its own, and end them when their time is over."""
        whole, began = self.plan.budgets[kind], time.time()
        left = self.end - began
        if left < LEAST_SHARE * whole:
            for name in names:
                note = f"left out: {max(0.0, left):.0f} s were left, and it may take {whole:.0f}"
                self.add(Row(name, "", "", note=note))
            return
        budget = min(whole, left)
        print(f"{', '.join(names)}: {budget:.0f} s at most", file=sys.stderr, flush=True)
        running: dict[object, Started] = {}
        try:
            cores = sorted(os.sched_getaffinity(0))
            for i, name in enumerate(names):
                its_own = cores[i :: len(names)]  # threads of all on all cores would wait for each other
                started = self.start(name, began + budget, set(its_own or cores))
                running[started.rows] = started
            self.follow(running, began, budget)
        finally:
            for started in running.values():
                started.end()

    def follow(self, running: dict[object, "Started"], began: float, budget: float) -> None:
        """Add the rows of sections as they come, until all have ended, or their time is over."""
        while running:
            ready = wait([started.rows for started in running.values()], began + budget + ENDING_S - time.time())
            if not ready:
                for started in running.values():
                    self.add(Row(started.name, "", "", note=f"its {budget:.0f} s were over, and it was ended"))
                return
            for rows in ready:
                try:
                    self.add(running[rows].rows.recv())
                except EOFError:
                    started = running.pop(rows)
                    self.took[started.name] = time.time() - began
                    if failure := started.failure():
                        self.add(Row(started.name, "", "", note=failure))

    def start(self, name: str, end: float, cores: set[int]) -> "Started":
        """Start a section."""
        rows, to_rows = self.context.Pipe(duplex=False)
        log = self.folder / f"{name}.log"
        arguments = (name, self.plan, self.arguments.device, self.folder, end, to_rows, log, cores)
        process = self.context.Process(target=run_section, args=arguments)
        process.start()
        to_rows.close()  # so that the end of the process is the end of its rows
        return Started(name, process, rows, log)


@dataclass(frozen=True)
class Started:
    """A section that runs.

    Attributes:
        name: Its name.
        process: Where it runs.
        rows: Where its rows come from.
        log: What it prints.
    """

    name: str
    process: BaseProcess
    rows: Connection
    log: Path

    def failure(self) -> str:
        """Wait for its end, and tell what went wrong; nothing where nothing did."""
        self.process.join()
        if not self.process.exitcode:
            return ""
        last = (self.log.read_text().strip().splitlines() or ["no word"])[-1]
        return f"failed with exit code {self.process.exitcode}: {last[:300]}"

    def end(self) -> None:
        """Kill it, a server and clients that it started too."""
        self.process.kill()
        if self.process.pid is not None:
            with suppress(ProcessLookupError):  # it has begun no group of processes yet
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()


@dataclass(frozen=True)
class Named:
    """A section that may be run.

    Attributes:
        name: Its name.
        kind: Which time it has.
        nets: Whose files it needs.
    """

    name: str
    kind: str
    nets: tuple[Net, ...] = ()

    def is_asked_for(self, names: Sequence[str]) -> bool:
        """Whether it is among these names, or among those that are run where there are none."""
        return self.name.removesuffix(AGAIN) in names if names else self.kind != "settings"


def sections_of(plan: Plan, device: str) -> list[Named]:
    """The sections, in the order of what they are worth."""
    first, nets = plan.nets[0], plan.nets
    kernels = [] if device == "cpu" else [Named(f"kernels {net.name}", "kernels", (net,)) for net in nets]
    return [
        Named("ceiling", "ceiling"),
        Named("server", "server", (first,)),
        *(Named(net.name, "net", (net,)) for net in nets),
        Named("placement", "placement", nets),
        Named("shapes", "shapes", nets[-1:]),
        *kernels,
        *(Named(f"compiled {net.name}", "compiled", (net,)) for net in nets),
        Named(f"ceiling{AGAIN}", "ceiling"),
        Named("settings", "settings", (first,)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda, cuda:N or cpu (cuda:0)")
    parser.add_argument(
        "--budget", type=float, default=560.0, help="seconds for all of it; what does not fit is left out (560)"
    )
    parser.add_argument("--sections", nargs="+", default=[], help="only these, after the export")
    parser.add_argument("--files", type=Path, help="where the nets' files are, or are to be kept")
    parser.add_argument("--quick", action="store_true", help="a tiny net and few repetitions, to see that it runs")
    add_json_option(parser)
    arguments = parser.parse_args()
    arguments.device = resolve_device(arguments.device)
    plan = QUICK if arguments.quick else FULL
    known = [section.name for section in sections_of(plan, arguments.device) if not section.name.endswith(AGAIN)]
    if unknown := set(arguments.sections) - set(known):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if arguments.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"torch sees no CUDA device for {arguments.device}; use --device cpu --quick to try the script")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    if arguments.files is not None:
        arguments.files.mkdir(parents=True, exist_ok=True)
        Bench(arguments, arguments.files).run()
        return
    with tempfile.TemporaryDirectory(prefix="fcnseg-gpu-") as folder:
        Bench(arguments, Path(folder)).run()


if __name__ == "__main__":
    main()
