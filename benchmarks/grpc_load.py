"""Load on a server by gRPC: several processes, each with threads that ask again as soon as they are answered.

`load` starts this file as its processes: python benchmarks/grpc_load.py HOST:PORT REQUEST CLIENTS BEGIN END
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

SEGMENT = "/fcnseg.v1.SegmentationService/Segment"
_PROCESSES = 4
_START_S = 2.0
_LONGEST_S = 60.0


@dataclass(frozen=True)
class Load:
    """What came of it.

    Attributes:
        rate: Answers a second.
        failed: Requests that were not answered with OK.
    """

    rate: float
    failed: int


def load(
    address: str, request: bytes, clients: int, seconds: float, warm_s: float, processes: int = _PROCESSES
) -> Load:
    """Ask a server by so many clients for a time, which begins when all of them have asked for a while.

    Args:
        address: HOST:PORT.
        request: An encoded SegmentRequest.
        clients: How many ask at a time, each by a connection of its own.
        seconds: How long answers are counted.
        warm_s: How long they are not, before.
        processes: In how many processes they are.
    """
    processes = min(processes, clients)
    begin = time.time() + _START_S + warm_s
    with tempfile.NamedTemporaryFile() as body:
        body.write(request)
        body.flush()
        started = []
        for i in range(processes):
            share = clients // processes + (i < clients % processes)
            arguments = [address, body.name, str(share), str(begin), str(begin + seconds)]
            started.append(subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True))
        found = [json.loads(process.communicate(timeout=_LONGEST_S + seconds + warm_s)[0]) for process in started]
    return Load(sum(count for count, _ in found) / seconds, sum(failed for _, failed in found))


def ask(address: str, request: bytes, clients: int, begin: float, end: float) -> tuple[int, int]:
    """Ask from now to the end; return how many were answered between, and how many failed."""
    answered, failed = [0] * clients, [0] * clients

    def client(number: int) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address, options=options) as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(SEGMENT)
            while time.time() < end:
                try:
                    call(request, timeout=_LONGEST_S)
                except grpc.RpcError:
                    failed[number] += 1
                else:
                    answered[number] += begin <= time.time() <= end

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(answered), sum(failed)


def main() -> None:
    address, body, clients, begin, end = sys.argv[1:]
    print(json.dumps(ask(address, Path(body).read_bytes(), int(clients), float(begin), float(end))))


if __name__ == "__main__":
    main()
