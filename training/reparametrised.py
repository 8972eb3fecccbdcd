"""Fix weights that layers compute from other tensors: by weight or spectral normalisation, pruning or otherwise.

The conversion and the export read weights from parameters, so the computed weights are first made plain parameters.
"""

from itertools import chain
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, SpectralNormStateDictHook
from torch.nn.utils.weight_norm import WeightNorm

_SOURCES = ("_g", "_v", "_orig", "_u", "_mask")
"""Name suffixes of the tensors from which hooks compute weights."""


def fix_weights(model: nn.Module) -> None:
    """Replace computed weights by plain parameters with their values in eval mode, in place; keep shared tensors."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            _fix_parametrised(module)
        for hook in list(module._forward_pre_hooks.values()):  # noqa: SLF001  # there is no public access
            if isinstance(hook, (WeightNorm, SpectralNorm, BasePruningMethod)):
                _fix_hooked(module, hook)


def _fix_parametrised(module: Any) -> None:
    values = {name: getattr(module, name).detach() for name in module.parametrizations}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]  # undo PyTorch's subclass with properties
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def _fix_hooked(module: nn.Module, hook: Any) -> None:
    hook(module, ())
    name = hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name  # noqa: SLF001
    value = getattr(module, name).detach()
    delattr(module, name)
    for source in _SOURCES:
        if hasattr(module, name + source):
            delattr(module, name + source)
    module.register_parameter(name, nn.Parameter(value))
    own = (type(hook), SpectralNormStateDictHook, SpectralNormLoadStateDictPreHook)
    hooks = (module._forward_pre_hooks, module._state_dict_hooks, module._load_state_dict_pre_hooks)  # noqa: SLF001
    for found, key in list(chain.from_iterable(((held, key) for key in held) for held in hooks)):
        if isinstance(getattr(found[key], "hook", found[key]), own):
            del found[key]
