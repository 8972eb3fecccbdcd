import pytest
import torch

from tests.gpu import needs_gpu
from training.device import resolve_precision


def test_bf16_is_not_chosen_where_the_device_would_only_emulate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Volta and Turing torch has bf16 by emulation alone, slower than fp32, and says so if it is asked."""

    def emulates(including_emulation: bool = True) -> bool:  # noqa: FBT001, FBT002 (as torch has it)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", emulates)
    assert resolve_precision("auto", "cuda") == "fp16"


@needs_gpu
def test_bf16_is_chosen_from_ampere_on() -> None:
    expected = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    assert resolve_precision("auto", "cuda") == expected


def test_the_cpu_trains_in_fp32_unless_told_otherwise() -> None:
    assert resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"
