"""Which nets cannot become heatmap nets, and why."""

from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from fcnseg.errors import ArchitectureError


def refuse_transformers(model: nn.Module) -> None:
    """Refuse nets whose layers are bound to one image size.

    Raises:
        ArchitectureError: The net adds position embeddings or attends over a fixed partition of the image.
    """
    for name, _ in model.named_parameters():
        if "pos_embed" in name:
            raise ArchitectureError(
                f"{type(model).__name__} is a transformer: its position embedding {name} has one entry per patch of"
                " one image size, so it cannot slide over larger images; choose a convolutional classifier"
            )
    for name, module in model.named_modules():
        if isinstance(module, ShiftedWindowAttention):
            continue  # its windows tile a map of any size
        if isinstance(module, nn.MultiheadAttention) or "Attention" in type(module).__name__:
            raise ArchitectureError(
                f"{type(model).__name__} is a transformer: {name} attends over a partition of one image size, so it"
                " cannot slide over larger images; choose a convolutional classifier"
            )
