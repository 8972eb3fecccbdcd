"""The training package: from a classifier to a model file; imports fcnseg, never serving.

>>> from training import convolutionalize                               # doctest: +SKIP
>>> net, certificate = convolutionalize(classifier)                     # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from fcnseg.certificate import Certificate

if TYPE_CHECKING:
    from training.conversion import Conversion, convolutionalize

__all__ = ["Certificate", "Conversion", "convolutionalize"]


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for: commands show their help without it."""
    if name in {"Conversion", "convolutionalize"}:
        from training import conversion

        return getattr(conversion, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
