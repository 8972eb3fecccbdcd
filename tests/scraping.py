"""Reading a server's metrics as Prometheus does."""

import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.running_server import RunningServer


@dataclass(frozen=True)
class Scrape:
    """What a server exported at one moment.

    Attributes:
        content_type: The answer's.
        samples: Values by sample name and sorted labels.
    """

    content_type: str
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a name that have these labels, beside others."""
        found = [v for (n, have), v in self.samples.items() if n == name and labels.items() <= dict(have).items()]
        return sum(found)

    def names(self) -> set[str]:
        """Return the names of all samples."""
        return {name for name, _ in self.samples}

    def labels(self, name: str) -> list[dict[str, str]]:
        """Return the labels of a name's samples."""
        return [dict(labels) for n, labels in self.samples if n == name]


def scrape(server: RunningServer | str, timeout_s: float = 60) -> Scrape:
    """Read a server's metrics."""
    address = server if isinstance(server, str) else server.http_address
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=timeout_s) as answer:
        text = answer.read().decode()
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return Scrape(answer.headers["Content-Type"], samples)
