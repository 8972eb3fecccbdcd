import os
import subprocess
import sys
from pathlib import Path

import pytest

import fcnseg


def test_what_the_package_names_is_there() -> None:
    names = dir(fcnseg)
    assert set(fcnseg.__all__) <= set(names)
    for name in fcnseg.__all__:
        assert getattr(fcnseg, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'fcnseg' has no attribute 'Segmentor'"):
        _ = fcnseg.Segmentor


def test_the_package_imports_what_is_asked_for_alone() -> None:
    code = (
        "import sys, fcnseg\n"
        "assert not {'numpy', 'grpc', 'onnxruntime'} & sys.modules.keys()\n"
        "fcnseg.FcnsegError\n"
        "assert not {'numpy', 'grpc', 'onnxruntime'} & sys.modules.keys()\n"
        "from fcnseg import *\n"
        "assert {'numpy', 'grpc', 'onnxruntime'} <= sys.modules.keys()\n"
        "assert segment_folder is fcnseg.segment_folder\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=180)


def test_clients_do_without_onnxruntime() -> None:
    code = (
        "import sys, fcnseg\n"
        "fcnseg.Client, fcnseg.AsyncClient, fcnseg.RegionQuery, fcnseg.Encoding, fcnseg.ClientTls\n"
        "assert 'onnxruntime' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=180)


def test_modules_are_there_without_being_imported() -> None:
    code = "import fcnseg; fcnseg.images.decode, fcnseg.errors.RequestError, fcnseg.v1"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=180)


def test_the_runtime_reports_to_nobody(tiny_model: Path, tmp_path: Path) -> None:
    """Where onnxruntime reports, it names the machine by a file in the user's cache as soon as a model is opened."""
    code = f"import fcnseg; fcnseg.load({str(tiny_model)!r}, 'cpu')"
    passed_on = {name: value for name, value in os.environ.items() if name not in {"CI", "ORT_DISABLE_TELEMETRY"}}
    environment = {**passed_on, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=180, env=environment)
    assert not list(tmp_path.iterdir())
