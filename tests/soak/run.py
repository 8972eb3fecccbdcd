"""A soak: a real server under everything that clients and operators do to one, in rounds with a rest after each."""

import json
import random
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests import http2
from tests.scraping import scrape
from tests.server_process import ServerProcess, free_port, server_process
from tests.soak.clients import Caller
from tests.soak.gauge import MIB, Held, grown, medians
from tests.soak.repository import Repository
from tests.soak.samples import Pool
from tests.soak.strangers import Stranger
from tests.soak.tally import Tally

ROUNDS, SHORT_ROUNDS = 5, 2
CALLERS, STRANGERS = 6, 4
_WATCH_S = 0.5
_GRACE_S = 5.0
_SETTLE_S = 30.0
_TIDIED_S = 12.0  # the server gives memory back when it has been idle for 10 s
_SAMPLE_S = 0.25
_OPTIONS = (
    *("--watch", str(_WATCH_S), "--http-port", "0", "--grace", str(_GRACE_S), "--log-format", "json"),
    *("--max-batch", "4", "--max-delay-ms", "1", "--max-queue", "12"),
    *("--max-memory", str(2048 * MIB)),
)
# Each model keeps the memory of its largest run, and the C library some of what is freed (fcnseg/allocator.py), so that
# memory grows until every kind of request has come, and is read at rest: nothing is under way, the same models are
# served, and the C library has given back what it can. Such readings lie a tenth apart. What leaks is higher at every
# later rest: one of the last two must not be above the highest of the first three by more than this.
_GROWTH_SHARE, _GROWTH_BYTES = 0.05, 64 * MIB
# gRPC's threads come with the load and go after half a minute without it.
_MORE_THREADS, _MORE_FILES = 4, 2
_SHORTEST_JUDGED_S = 120.0  # less is too short to tell warming up from leaking
# What is warmed takes the largest images first, so that less of the growth is warming up.
_WARM = ("--warm", "320x480", "--warm", "400x400")
# Written by the decoder itself of a damaged file, to which we have no handle: fixed words and numbers.
_OF_LIBJPEG = re.compile(
    "Corrupt JPEG data|Premature end of JPEG|Inconsistent progression|Invalid SOS|Unknown Adobe|Warning: unknown JFIF"
)


@dataclass
class Report:
    """What a soak found.

    Attributes:
        tally: What clients saw.
        changes: How often each change was made to the models.
        fresh: What the server held before the load.
        rests: What it held at rest after each round.
        under_load: Resident bytes under load, four times a second.
        exit_code: What the server ended with; None where it did not end.
        seconds: Seconds of load.
    """

    tally: Tally = field(default_factory=Tally)
    changes: dict[str, int] = field(default_factory=dict)
    fresh: Held | None = None
    rests: list[Held] = field(default_factory=list)
    under_load: list[int] = field(default_factory=list)
    exit_code: int | None = None
    seconds: float = 0.0

    @property
    def problems(self) -> list[str]:
        """What broke a law, one line each; empty where the soak was passed."""
        return self.tally.problems

    def __str__(self) -> str:
        calls = self.tally.by_kind()
        lines = [f"{self.seconds:.0f} s of load, {sum(self.tally.calls.values())} calls and images of streams:"]
        lines += [
            f"  {kind:28s} {', '.join(f'{code} {count}' for code, count in codes.items())}"
            for kind, codes in calls.items()
        ]
        checked = ", ".join(f"{name} {count}" for name, count in sorted(self.tally.checked.items()))
        lines.append(f"answers compared with offline ones: {sum(self.tally.checked.values())} ({checked})")
        lines.append(
            f"changes of models: {', '.join(f'{name} {count}' for name, count in sorted(self.changes.items()))}"
        )
        lines.append(f"before the load: {self.fresh}")
        lines += [f"at rest after round {i}: {held}" for i, held in enumerate(self.rests, start=1)]
        if len(self.under_load) >= ROUNDS:
            early, late = medians(self.under_load)
            lines.append(
                f"memory under load: {early / MIB:.0f} MiB in the second fifth, {late / MIB:.0f} MiB in the last"
                f" (medians), {max(self.under_load) / MIB:.0f} MiB at most"
            )
        lines.append(f"exit code: {self.exit_code}")
        lines += [f"PROBLEM: {line}" for line in self.problems] or ["no law was broken"]
        return "\n".join(lines)


def soak(
    folder: Path,
    seconds: float,
    seed: int,
    tell: Callable[[str], None] = lambda _: None,
    *,
    options: Sequence[str] = (),
) -> Report:
    """Soak a server.

    Args:
        folder: An empty folder for models and the log.
        seconds: Seconds of load. From 2 minutes on memory is judged; what is shorter does not wait for the server to
            give back what it freed.
        seed: What the random choices follow from, as far as threads allow.
        tell: Takes a line of progress now and then.
        options: More options of `fcnseg serve`.
    """
    long = seconds >= _SHORTEST_JUDGED_S
    rounds = ROUNDS if long else SHORT_ROUNDS
    options = (*_OPTIONS, *(_WARM if long else ()), *options)
    report = Report()
    rng = random.Random(seed)
    repository = Repository(folder, rng)
    pool = Pool(rng)
    log = folder / "server.log"
    with server_process(repository.folder, free_port(), *options, log=log) as server:
        report.fresh = Held.by(server.pid)
        tell(f"serving at {server.address}: {report.fresh}")
        for number in range(1, rounds + 1):
            tell(f"round {number} of {rounds}")
            with _load(server, repository, pool, report, rng):
                _watch(server, report, seconds / rounds, tell)
            if server.exit_code is not None:
                report.tally.problem(f"the server ended with {server.exit_code} under load")
                break
            repository.settle()
            report.rests.append(_rest(server, repository, report, _TIDIED_S if long else 0.0))
            tell(f"at rest: {report.rests[-1]}")
        else:
            with _lingering(server):
                try:
                    server.begin_stop()
                    report.exit_code = server.wait_stopped(_GRACE_S + 20)
                except subprocess.TimeoutExpired:
                    report.tally.problem("the server did not end on SIGTERM")
            if report.exit_code != 0:
                report.tally.problem(f"the server ended with {report.exit_code} on SIGTERM")
    report.changes = repository.changes
    _judge_log(log, report)
    _judge_held(report)
    return report


@contextmanager
def _load(
    server: ServerProcess, repository: Repository, pool: Pool, report: Report, rng: random.Random
) -> Iterator[None]:
    """Let clients, strangers and an operator loose on a server; when the block ends, they end."""
    stopping = threading.Event()
    assert server.http_address is not None
    seeds = [random.Random(rng.getrandbits(64)) for _ in range(CALLERS + STRANGERS)]
    callers = [
        Caller(server.address, server.http_address, repository, pool, report.tally, own) for own in seeds[:CALLERS]
    ]
    strangers = [Stranger(server.address, server.http_address, report.tally, own) for own in seeds[CALLERS:]]
    threads = [threading.Thread(target=each.run, args=(stopping,), daemon=True) for each in (*callers, *strangers)]
    threads.append(threading.Thread(target=repository.churn, args=(stopping, 3 * _WATCH_S), daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        end = time.monotonic() + _SETTLE_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                report.tally.problem(f"a call did not end within {_SETTLE_S:g} s of the load's end")


def _watch(server: ServerProcess, report: Report, seconds: float, tell: Callable[[str], None]) -> None:
    """Take the server's memory under load, for so long."""
    began = told = time.monotonic()
    while (now := time.monotonic()) < began + seconds and server.exit_code is None:
        held = Held.by(server.pid)
        report.under_load.append(held.memory)
        if now > told + 15:
            told = now
            done, checked = sum(report.tally.calls.values()), sum(report.tally.checked.values())
            tell(f"{report.seconds + now - began:.0f} s: {done} calls, {checked} answers checked; {held}")
        time.sleep(_SAMPLE_S)
    report.seconds += time.monotonic() - began


def _rest(server: ServerProcess, repository: Repository, report: Report, pause_s: float) -> Held:
    """Wait until nothing is under way and only the settled models are served; return what the server holds then."""
    assert server.http_address is not None
    end = time.monotonic() + _SETTLE_S
    while busy := _busy(server.http_address, repository):
        if time.monotonic() > end:
            report.tally.problem(f"{_SETTLE_S:g} s after the load, {busy}")
            break
        time.sleep(0.2)
    first = report.rests[0] if report.rests else None
    time.sleep(pause_s)
    while (held := Held.by(server.pid)) and first is not None and _holds_more(held, first) and time.monotonic() < end:
        time.sleep(0.5)
    return held


def _busy(http_address: str, repository: Repository) -> str:
    """Say what the server has still to do; empty where nothing."""
    metrics = scrape(http_address)
    served = {(labels["name"], labels["version"]) for labels in _models(metrics.labels("fcnseg_model_info"))}
    gauges = {
        "images are under way": metrics.value("fcnseg_queue_images"),
        "bytes are held": metrics.value("fcnseg_memory_bytes", use="held"),
        "bytes are taken by runs": metrics.value("fcnseg_memory_bytes", use="running"),
    }
    left = [f"{value:g} {what}" for what, value in gauges.items() if value]
    if served != repository.served:
        left.append(f"{served} are served where the repository holds {repository.served}")
    return ", ".join(left)


def _models(labels: list[dict[str, str]]) -> Iterator[dict[str, str]]:
    for each in labels:
        yield {"name": each["model"], "version": each["version"]}


@contextmanager
def _lingering(server: ServerProcess) -> Iterator[None]:
    """Keep connections open that say nothing: they must not hold up a server's end."""
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port))), socket.create_connection((host, int(port))) as other:
        other.sendall(http2.greeting())
        yield


def _holds_more(held: Held, first: Held) -> bool:
    return held.threads > first.threads + _MORE_THREADS or held.files > first.files + _MORE_FILES


def _judge_log(log: Path, report: Report) -> None:
    """Every line of the log must be JSON, and none of a fault."""
    for line in log.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            if not _OF_LIBJPEG.match(line):
                report.tally.problem(f"the log has a line that is no JSON: {line[:300]}")
            continue
        if entry["level"] in {"ERROR", "CRITICAL"} or "exception" in entry:
            report.tally.problem(f"the log has a fault: {line[:2000]}")


def _judge_held(report: Report) -> None:
    if len(report.rests) < SHORT_ROUNDS:
        return
    first, last = report.rests[0], report.rests[-1]
    if _holds_more(last, first):
        report.tally.problem(f"at rest the server held {first} after the first round, and {last} after the last")
    if len(report.rests) < ROUNDS:
        return
    early, late = grown([held.memory for held in report.rests])
    if late > early + max(early * _GROWTH_SHARE, _GROWTH_BYTES):
        report.tally.problem(f"memory at rest grew from {early / MIB:.0f} to {late / MIB:.0f} MiB")
