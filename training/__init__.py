"""Turn a classifier into a model file, with or without training; this package imports fcnseg, never serving.

>>> from training import convolutionalize                               # doctest: +SKIP
>>> net, certificate = convolutionalize(classifier)                     # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from fcnseg.certificate import Certificate

if TYPE_CHECKING:
    from training.conversion import Conversion, convolutionalize

__all__ = ["Certificate", "Conversion", "convolutionalize"]


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that commands can show their help without importing torch."""
    if name in {"Conversion", "convolutionalize"}:
        from training import conversion

        return getattr(conversion, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
