"""Read weights from files, strip the prefix that a checkpoint gave them, and load them strictly."""

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fcnseg.errors import WeightsError


def read_state(path: Path) -> "OrderedDict[str, Tensor]":
    """Read a state_dict from a .pth or .safetensors file, unwrapping `state_dict` and `model` entries.

    Raises:
        WeightsError: The file does not exist or has no named tensors.
    """
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist; give the path of a state_dict (.pth)")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts store their options so
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes suggest
        raise WeightsError(
            f"weights file {path} cannot be read as a state_dict; give what torch.save(net.state_dict(), ...) wrote"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"weights file {path} holds no state_dict (tensors by name)")
    return OrderedDict((name, value.float() if value.is_floating_point() else value) for name, value in state.items())


def load_state(net: nn.Module, state: "OrderedDict[str, Tensor]", source: str) -> None:
    """Load a state_dict strictly, or the part of it under a prefix, as in Lightning's checkpoints.

    Raises:
        WeightsError: Keys or shapes differ (the message names the first ones), or several prefixes fit the net.
    """
    expected = net.state_dict()
    state = below_prefix(state, expected, source)
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in expected]
    shapes = [k for k in expected if k in state and expected[k].shape != state[k].shape]
    if not missing and not unexpected and (counts := _class_counts(expected, state, shapes)):
        raise WeightsError(
            f"weights {source} score {counts[0]} classes where {type(net).__name__} scores {counts[1]} (first"
            f" {shapes[0]}); build the net with {counts[0]} classes, or give weights of {counts[1]}"
        )
    if missing or unexpected or shapes:
        found = []
        if missing:
            found.append(f"{len(missing)} keys missing, first {', '.join(missing[:3])}")
        if unexpected:
            found.append(f"{len(unexpected)} unexpected, first {', '.join(unexpected[:3])}")
        if shapes:
            key = shapes[0]
            found.append(
                f"{len(shapes)} of another shape, first {key}: {tuple(state[key].shape)}"
                f" for {tuple(expected[key].shape)}"
            )
        raise WeightsError(f"weights {source} do not fit {type(net).__name__}: {'; '.join(found)}")
    net.load_state_dict(state, strict=False)


def below_prefix(
    state: "OrderedDict[str, Tensor]", expected: dict[str, Tensor], source: str
) -> "OrderedDict[str, Tensor]":
    """Return the part of a state_dict under the prefix that fits a net; all of it if some keys fit without a prefix.

    Args:
        state: The state_dict.
        expected: The net's own state_dict.
        source: Where `state` comes from, for the message.

    Raises:
        WeightsError: Several prefixes fit the net.
    """
    if state.keys() & expected.keys():
        return state
    needed = [key for key in expected if not key.endswith("num_batches_tracked")]
    found = [key.removesuffix(needed[0]) for key in state if key.endswith(f".{needed[0]}")]
    prefixes = [prefix for prefix in found if all(prefix + key in state for key in needed)]
    if len(prefixes) > 1:
        raise WeightsError(
            f"weights {source} hold the net {len(prefixes)} times, below {' and '.join(prefixes)}; give a file with one"
        )
    if not prefixes:
        return state
    return OrderedDict((key.removeprefix(prefixes[0]), v) for key, v in state.items() if key.startswith(prefixes[0]))


def _class_counts(
    expected: dict[str, Tensor], state: "OrderedDict[str, Tensor]", shapes: list[str]
) -> tuple[int, int] | None:
    """Return the (given, expected) numbers of classes if weights differ from a net's only in its last layers' rows."""
    pairs = {(state[key].shape[0], expected[key].shape[0]) for key in shapes}
    only_rows = all(state[key].shape[1:] == expected[key].shape[1:] for key in shapes)
    last = list(expected)[-len(shapes) :] if shapes else []
    return pairs.pop() if only_rows and len(pairs) == 1 and shapes == last else None


def load_in_order(net: nn.Module, state: "OrderedDict[str, Tensor]", source: str) -> None:
    """Load a state_dict whose tensors have the net's order but other names.

    Raises:
        WeightsError: The shapes differ.
    """
    expected = net.state_dict()
    if [v.shape for v in expected.values()] != [v.shape for v in state.values()]:
        raise WeightsError(f"weights of the package {source} do not fit {type(net).__name__}: shapes differ")
    net.load_state_dict(OrderedDict(zip(expected, state.values(), strict=True)))
