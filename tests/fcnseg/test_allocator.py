import platform
import subprocess
import sys

import pytest

PROGRAM = """
from pathlib import Path
from fcnseg.allocator import keep_freed_memory, release_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

keep_freed_memory(KEPT)
blocks = [bytes(range(256)) * 1000 for _ in range(400)]  # 100 MB in pieces
del blocks
kept = resident()
release_freed_memory()
print(kept - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
@pytest.mark.parametrize("most", ["None", "256 << 20"])
def test_freed_memory_is_kept_until_it_is_released(most: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("KEPT", most)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 80_000_000
