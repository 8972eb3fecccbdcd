"""Copies to a device, against a stand-in for NVIDIA's driver."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnseg import cuda_copies
from fcnseg.bound_run import open_copies, prove_copies
from fcnseg.cuda_copies import CudaCopies
from fcnseg.errors import DeviceError
from tests.stand_in_driver import StandInDriver

LANE_BYTES = 64


def prepared(patch: pytest.MonkeyPatch) -> StandInDriver:
    patch.setattr(cuda_copies, "_LANE_BYTES", LANE_BYTES)
    return StandInDriver.put_in_place(patch)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> StandInDriver:
    return prepared(monkeypatch)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (2, 4, 8), (7, 11, 13)])
def test_what_goes_to_the_device_comes_back(
    driver: StandInDriver, shape: tuple[int, ...], dtype: type[np.generic]
) -> None:
    copies = CudaCopies(0)
    source = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
    memory = np.zeros_like(source)
    copies.upload([source], memory.ctypes.data)
    np.testing.assert_array_equal(memory, source)
    (found,) = copies.download([(memory.ctypes.data, shape, np.dtype(dtype))])
    np.testing.assert_array_equal(found, source)
    assert not driver.pending


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
        assert not driver.pending


def test_threads_copy_at_a_time_and_lanes_are_used_again(driver: StandInDriver) -> None:
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


@pytest.mark.usefixtures("driver")
def test_one_thread_copies_to_two_devices_in_turns() -> None:
    devices = [CudaCopies(number) for number in range(2)]
    memory = np.zeros(10, np.uint8)
    for turn in range(1, 7):
        copies = devices[turn % 2]
        copies.lend_stream(copies)
        copies.upload([np.full(10, turn, np.uint8)], memory.ctypes.data)
        (found,) = devices[turn // 2 % 2].download([(memory.ctypes.data, memory.shape, memory.dtype)])
        assert set(found) == {turn}


def test_a_copy_that_fails_is_told_of_and_keeps_its_lane(driver: StandInDriver) -> None:
    copies = CudaCopies(0)
    memory = np.zeros(10, np.uint8)
    driver.codes["cuMemcpyHtoDAsync_v2"] = 700
    for _ in range(3):
        with pytest.raises(DeviceError, match="the NVIDIA driver's cuMemcpyHtoDAsync_v2 failed with code 700"):
            copies.upload([memory], memory.ctypes.data)
    assert driver.streams == 1


def test_a_stream_takes_its_turn_between_what_goes_to_the_device_and_what_comes_back(driver: StandInDriver) -> None:
    copies = CudaCopies(0)
    there, back = (np.zeros(3 * LANE_BYTES + 5, np.uint8) for _ in range(2))
    sources = [np.random.default_rng(seed).integers(0, 256, there.size, np.uint8) for seed in range(3)]
    stream = copies.lend_stream(there)
    for source in sources:
        with copies.lane() as lane:
            lane.upload([source], there.ctypes.data)
            lane.lead_into(stream)
            driver.enqueue(stream, lambda: np.copyto(back, ~there))
            lane.go_on_after(stream)
            assert driver.pending
            (found,) = lane.download([(back.ctypes.data, back.shape, back.dtype)])
        np.testing.assert_array_equal(found, ~source)
        assert not driver.pending


def test_nothing_goes_on_in_a_lane_that_was_given_back(driver: StandInDriver) -> None:
    copies, memory = CudaCopies(0), np.zeros(10, np.uint8)

    def upload_and_fail() -> None:
        with copies.lane() as lane:
            lane.upload([memory + 1], memory.ctypes.data)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        upload_and_fail()
    assert not driver.pending
    assert memory.all()


@pytest.mark.parametrize("shapes", [[], [(0,)], [(3, 0, 0), (0,)]])
def test_who_reads_nothing_waits_for_what_was_asked_for_before(
    driver: StandInDriver, shapes: list[tuple[int, ...]]
) -> None:
    copies, there = CudaCopies(0), np.zeros(10, np.uint8)
    with copies.lane() as lane:
        lane.upload([there + 1], there.ctypes.data)
        found = lane.download([(there.ctypes.data, shape, there.dtype) for shape in shapes])
        assert not driver.pending
    assert [array.shape for array in found] == shapes


def test_without_memory_for_a_lane_nothing_is_opened(driver: StandInDriver) -> None:
    copies, memory = CudaCopies(0), np.zeros(10, np.uint8)
    driver.codes["cuMemHostAlloc"] = 2
    for _ in range(3):
        with pytest.raises(DeviceError, match="the NVIDIA driver's cuMemHostAlloc failed with code 2"):
            copies.upload([memory + 1], memory.ctypes.data)
    assert driver.streams == 0
    del driver.codes["cuMemHostAlloc"]
    copies.upload([memory + 1], memory.ctypes.data)
    assert memory.all()


def test_a_lane_that_could_not_be_waited_for_is_not_lent_again(driver: StandInDriver) -> None:
    copies = CudaCopies(0)
    there = np.zeros(10, np.uint8)
    driver.codes["cuStreamSynchronize"] = 900
    with pytest.raises(DeviceError, match="cuStreamSynchronize failed with code 900"):
        copies.download([(there.ctypes.data, there.shape, there.dtype)])
    assert driver.pending
    del driver.codes["cuStreamSynchronize"]
    copies.upload([there + 1], there.ctypes.data)
    assert there.all()
    assert driver.streams == 2


def test_a_stream_is_lent_to_one_at_a_time_and_again_when_it_is_free(driver: StandInDriver) -> None:
    class Borrower:
        pass

    copies = CudaCopies(0)
    first, second = Borrower(), Borrower()
    lent = copies.lend_stream(first)
    assert copies.lend_stream(second) != lent
    del first
    gc.collect()
    assert copies.lend_stream(Borrower()) == lent
    assert driver.streams == 2


@pytest.mark.parametrize("lost", ["cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"])
def test_copies_are_proved_by_those_of_onnxruntime(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(cuda_copies, "_LANE_BYTES", 16 << 10)
    copies = CudaCopies(0)
    prove_copies(copies, "cpu")
    driver.loses = lost
    with pytest.raises(DeviceError, match="a copy .* the device differs"):
        prove_copies(copies, "cpu")


def test_a_device_whose_driver_fails_is_used_without_pinned_memory(
    driver: StandInDriver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.codes["cuDevicePrimaryCtxRetain"] = 2
    assert open_copies("cuda:7") is None
    assert "cuda:7 is used without pinned memory: the NVIDIA driver's cuDevicePrimaryCtxRetain failed" in caplog.text


def test_without_a_driver_or_a_device_it_says_so(driver: StandInDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.codes["cuDeviceGet"] = 101
    with pytest.raises(DeviceError, match="cuDeviceGet failed with code 101"):
        CudaCopies(3)
    monkeypatch.setattr(cuda_copies, "open_driver", lambda *_: None)
    with pytest.raises(DeviceError, match="the NVIDIA driver cannot be opened"):
        CudaCopies(0)
