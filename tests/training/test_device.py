import contextlib
import copy

import pytest
import torch
from torch import nn

from fcnseg.errors import DeviceError
from tests.gpu import needs_gpu
from training.device import exact_products, resolve_precision


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


def test_fp16_is_refused_on_the_cpu_rather_than_made_bf16() -> None:
    with pytest.raises(DeviceError, match="the CPU trains in fp32 or bf16; use --precision fp32"):
        resolve_precision("fp16", "cpu")


@pytest.mark.parametrize(("convolutions", "products"), [(True, "highest"), (True, "medium"), (False, "high")])
def test_exact_products_leave_the_settings_as_they_were(
    monkeypatch: pytest.MonkeyPatch, *, convolutions: bool, products: str
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", convolutions)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(products)
    try:
        with contextlib.suppress(KeyError), exact_products():
            seen = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
            raise KeyError
        assert seen == (False, False)
        assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (convolutions, products)
    finally:
        torch.set_float32_matmul_precision(before)


@needs_gpu
def test_exact_products_keep_the_bits_that_tf32_drops() -> None:
    torch.manual_seed(0)
    conv, images = nn.Conv2d(64, 64, 3), torch.randn(2, 64, 32, 32)
    with torch.no_grad(), exact_products():
        expected = copy.deepcopy(conv).double()(images.double())
        found = conv.cuda()(images.cuda()).cpu().double()
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
