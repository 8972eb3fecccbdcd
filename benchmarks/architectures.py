"""Which classifiers become heatmap nets: all of torchvision's, and the smallest of each of timm's model families.

Run it: python benchmarks/architectures.py torchvision|timm|NAME ... [--json FILE]

Weights are random and BatchNorm statistics shuffled, since the identities hold for any weights. A NAME is one that
`fcnseg inspect` takes, such as timm/repvgg_a0.
"""

import argparse
import warnings
from collections.abc import Iterator

import timm
import torch
import torchvision
from reporting import Report, add_json_option
from torch import nn

from fcnseg.certificate import Certificate, format_pair
from fcnseg.errors import FcnsegError
from training.conversion import convolutionalize
from training.zoo import TIMM_PREFIX, load_classifier

COLUMNS = (
    *("architecture", "identity", "error on noise", "on photographs", "border effect", "stride", "offset", "alignment"),
    *("receptive field", "global context", "parameters", "in FC layers"),
)


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help="torchvision, timm, or classifiers")
    add_json_option(parser)
    arguments = parser.parse_args()
    report = Report(arguments.json)
    table = report.table("architectures", f"Classifiers: {' '.join(arguments.names)}", COLUMNS)
    refused: dict[str, str] = {}
    for name in (each for asked in arguments.names for each in named(asked)):
        try:
            certificate = certify(name)
        except FcnsegError as error:
            refused[name] = str(error)
        else:
            table.add(*row(name, certificate))
    if refused:
        table = report.table("refused", "What is no heatmap net", ("refused", "reason"))
        for name, reason in refused.items():
            table.add(name, reason)
    report.write()


def named(asked: str) -> Iterator[str]:
    """The classifiers of a package, or the one of that name."""
    if asked == "torchvision":
        return iter(torchvision.models.list_models(module=torchvision.models))
    return smallest_of_each_family() if asked == "timm" else iter([asked])


def smallest_of_each_family() -> Iterator[str]:
    """The classifier with the fewest parameters of every module of timm."""
    for module in timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=module):
            config = timm.get_pretrained_cfg(name)
            if config is None or not config.num_classes or name.startswith("test_"):
                continue
            try:
                with torch.device("meta"):
                    sizes[name] = count(timm.create_model(name))
            except (RuntimeError, NotImplementedError):  # what computes with its parameters while it is built
                continue
        if sizes:
            yield TIMM_PREFIX + min(sizes, key=sizes.__getitem__)


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def certify(name: str) -> Certificate:
    torch.manual_seed(0)
    classifier = load_classifier(name, pretrained=False)
    for module in classifier.net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return convolutionalize(classifier.net, classifier.input_size).certificate


def row(name: str, certificate: Certificate) -> tuple[str, ...]:
    photo, modules = certificate.photo_error, len(certificate.global_context)
    return (
        name,
        certificate.identity,
        f"{certificate.relative_error:.1e}",
        "" if photo is None else f"{photo:.1e}",
        f"{certificate.border_effect:.2g}",
        format_pair(certificate.output_stride),
        format_pair(certificate.offset),
        format_pair(certificate.alignment),
        format_pair(certificate.receptive_field),
        {0: "none", 1: "1 module"}.get(modules, f"{modules} modules"),
        f"{certificate.parameters_before / 1e6:.1f} M",
        f"{certificate.fc_share:.1%}",
    )


if __name__ == "__main__":
    main()
