import subprocess
import sys

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
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_clients_do_without_onnxruntime() -> None:
    code = (
        "import sys, fcnseg\n"
        "fcnseg.Client, fcnseg.AsyncClient, fcnseg.RegionQuery, fcnseg.Encoding, fcnseg.ClientTls\n"
        "assert 'onnxruntime' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_modules_are_there_without_being_imported() -> None:
    code = "import fcnseg; fcnseg.images.decode, fcnseg.errors.RequestError, fcnseg.v1"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
