"""Triton with its Python backend: NVIDIA's tritonserver, from PyTriton's wheel. Run as server.py MODEL PORT THREADS.

No dynamic batching: on the CPU a batch takes as long as its images.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytriton
import session

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 0
input {{ name: "image" data_type: TYPE_UINT8 dims: [-1, -1, -1, 3] }}
output {{ name: "class_map" data_type: TYPE_UINT8 dims: [-1, -1, -1] }}
instance_group {{ kind: KIND_CPU count: 1 }}
parameters {{ key: "model" value {{ string_value: "{model}" }} }}
parameters {{ key: "threads" value {{ string_value: "{threads}" }} }}
"""


def write_repository(folder: Path, model: Path, threads: int) -> None:
    version = folder / model.stem / "1"
    version.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("model.py"), version)
    shutil.copy(session.__file__, version)  # the backend looks for modules here, and not in PYTHONPATH
    config = CONFIG.format(name=model.stem, model=model.resolve(), threads=threads)
    version.with_name("config.pbtxt").write_text(config)


def install_server(folder: Path) -> None:
    """Lay out the server as its backend expects: with the stub of this Python beside it."""
    wheel = Path(pytriton.__file__).parent / "tritonserver"
    shutil.copytree(wheel, folder, ignore=shutil.ignore_patterns("python_backend_stubs"))
    stub = Path(f"{sys.version_info[0]}.{sys.version_info[1]}") / "triton_python_backend_stub"
    shutil.copy(wheel / "python_backend_stubs" / stub, folder / "backends" / "python")


def main(model: Path, port: int, threads: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        server, repository = Path(temporary) / "server", Path(temporary) / "models"
        install_server(server)
        write_repository(repository, model, threads)
        libraries = Path(pytriton.__file__).parent.parent / "nvidia_pytriton.libs"
        command: list[str | Path] = [
            server / "bin" / "tritonserver",
            "--model-repository",
            repository,
            "--backend-directory",
        ]
        command += [server / "backends", "--grpc-address", "127.0.0.1", "--grpc-port", str(port)]
        command += ["--allow-http", "false", "--allow-metrics", "false"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(command, check=True, env={**os.environ, "LD_LIBRARY_PATH": str(libraries), "PATH": path})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
