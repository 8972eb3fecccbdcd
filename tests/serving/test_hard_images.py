"""Image files as strangers send them: odd, hostile and broken ones, through the real server."""

import time
from pathlib import Path

from fcnseg.client import Client
from fcnseg.errors import InvalidRequestError
from serving.server import ServerConfig
from tests.running_server import running_server


def test_every_file_gets_a_mask_or_one_line_that_helps(tiny_model: Path, shared_data: Path) -> None:
    answered: list[str] = []
    refused: dict[str, InvalidRequestError] = {}
    with running_server(tiny_model, ServerConfig()) as server, Client(server.address, retries=0) as client:
        for path in sorted((shared_data / "hard_images").iterdir()):
            if not path.is_file():
                continue
            began = time.monotonic()
            try:
                height, width = client.segment(path).class_map.shape
                assert min(height, width) > 0
                answered.append(path.name)
            except InvalidRequestError as error:
                refused[path.name] = error
            assert time.monotonic() - began < 10, path
    assert len(answered) > len(refused) > 0
    for name, error in refused.items():
        prefix = f"image {shared_data / 'hard_images' / name}: server {server.address}: "
        assert error.field == "encoded", name
        assert str(error).startswith(prefix)
        assert 20 < len(str(error)) - len(prefix) < 300, name
        assert "\n" not in str(error), name
