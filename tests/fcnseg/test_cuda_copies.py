"""Copies to a device, against a stand-in for NVIDIA's driver whose device memory is the host's."""

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnseg import cuda_copies
from fcnseg.bound_run import open_copies, prove_copies
from fcnseg.cuda_copies import CudaCopies
from fcnseg.errors import DeviceError

LANE_BYTES = 64


class Driver:
    """Answers the driver's calls with 0, or with the code that it was told to fail with."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.streams = 0
        self.loses: str | None = None  # a copy that is waited for and not done
        self.in_order = True  # whether every copy was waited for before its part of pinned memory was used again
        self.waiting: dict[int | None, list[range]] = {}
        self._memory: list[ctypes.Array[ctypes.c_char]] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        return partial(self._answer, name)

    def _answer(self, name: str, *arguments: Any) -> int:
        plain = [argument for argument in arguments if isinstance(argument, int)]
        assert not plain, f"{name} would get {plain} as C's int, with half of an address's bits"
        if code := self.codes.get(name):
            return code
        match name, arguments:
            case "cuStreamCreate", (stream, _):
                self.streams += 1
                stream._obj.value = self.streams
            case "cuMemHostAlloc", (address, size, _):
                self._memory.append(ctypes.create_string_buffer(size.value))
                address._obj.value = ctypes.addressof(self._memory[-1])
            case "cuMemcpyHtoDAsync_v2" | "cuMemcpyDtoHAsync_v2", (target, source, size, stream):
                pinned = target if name == "cuMemcpyDtoHAsync_v2" else source
                part = range(pinned.value, pinned.value + size.value)
                others = self.waiting.setdefault(stream.value, [])
                self.in_order &= all(part.stop <= other.start or other.stop <= part.start for other in others)
                others.append(part)
                if name != self.loses:
                    ctypes.memmove(target.value, source.value, size.value)
            case "cuStreamSynchronize", (stream,):
                self.waiting.pop(stream.value, None)
            case "cuDeviceGet" | "cuDevicePrimaryCtxRetain" | "cuCtxSetCurrent", _:
                pass
            case _:
                raise AssertionError(f"the driver has no {name} with {len(arguments)} arguments")
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return prepared(monkeypatch)


def prepared(patch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    patch.setattr(cuda_copies, "open_driver", lambda *_: driver)
    patch.setattr(cuda_copies, "_LANE_BYTES", LANE_BYTES)
    return driver


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (2, 4, 8), (7, 11, 13)])
def test_what_goes_to_the_device_comes_back(driver: Driver, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    copies = CudaCopies(0)
    source = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
    memory = np.zeros_like(source)
    copies.upload([source], memory.ctypes.data)
    np.testing.assert_array_equal(memory, source)
    (found,) = copies.download([(memory.ctypes.data, shape, np.dtype(dtype))])
    np.testing.assert_array_equal(found, source)
    assert driver.in_order
    assert not driver.waiting


@given(sizes=st.lists(st.integers(0, 3 * LANE_BYTES), max_size=6))
def test_arrays_go_to_the_device_one_behind_the_other_and_come_back_each(sizes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        driver = prepared(patch)
        copies = CudaCopies(0)
        sources = [np.random.default_rng(i).integers(0, 256, size, np.uint8) for i, size in enumerate(sizes)]
        memory = np.zeros(sum(sizes), np.uint8)
        copies.upload(sources, memory.ctypes.data)
        np.testing.assert_array_equal(memory, np.concatenate([memory[:0], *sources]))
        places = np.cumsum([0, *sizes])[:-1] + memory.ctypes.data
        found = copies.download([(int(a), (size,), memory.dtype) for a, size in zip(places, sizes, strict=True)])
        for came, went in zip(found, sources, strict=True):
            np.testing.assert_array_equal(came, went)
        assert driver.in_order
        assert not driver.waiting


def test_threads_copy_at_a_time_and_lanes_are_used_again(driver: Driver) -> None:
    copies, together = CudaCopies(0), threading.Barrier(4)

    def work(seed: int) -> None:
        together.wait(10)
        source = np.random.default_rng(seed).integers(0, 256, 5000, np.uint8)
        memory = np.zeros_like(source)
        for _ in range(20):
            copies.upload([source], memory.ctypes.data)
            (found,) = copies.download([(memory.ctypes.data, (5000,), source.dtype)])
            np.testing.assert_array_equal(found, source)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert 1 <= driver.streams <= 4
    assert driver.in_order


def test_a_copy_that_fails_is_told_of_and_keeps_its_lane(driver: Driver) -> None:
    copies = CudaCopies(0)
    memory = np.zeros(10, np.uint8)
    driver.codes["cuMemcpyHtoDAsync_v2"] = 700
    for _ in range(3):
        with pytest.raises(DeviceError, match="the NVIDIA driver's cuMemcpyHtoDAsync_v2 failed with code 700"):
            copies.upload([memory], memory.ctypes.data)
    assert driver.streams == 1


@pytest.mark.parametrize("lost", ["cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"])
def test_copies_are_proved_by_those_of_onnxruntime(driver: Driver, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    monkeypatch.setattr(cuda_copies, "_LANE_BYTES", 16 << 10)
    copies = CudaCopies(0)
    prove_copies(copies, "cpu")
    driver.loses = lost
    with pytest.raises(DeviceError, match="what was copied .* is not"):
        prove_copies(copies, "cpu")


def test_a_device_whose_driver_fails_is_used_without_pinned_memory(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.codes["cuDevicePrimaryCtxRetain"] = 2
    assert open_copies("cuda:7") is None
    assert "cuda:7 is used without pinned memory: the NVIDIA driver's cuDevicePrimaryCtxRetain failed" in caplog.text


def test_without_a_driver_or_a_device_it_says_so(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.codes["cuDeviceGet"] = 101
    with pytest.raises(DeviceError, match="cuDeviceGet failed with code 101"):
        CudaCopies(3)
    monkeypatch.setattr(cuda_copies, "open_driver", lambda *_: None)
    with pytest.raises(DeviceError, match="the NVIDIA driver cannot be opened"):
        CudaCopies(0)
