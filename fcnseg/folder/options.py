"""The options of a job."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from fcnseg.cores import usable_cores
from fcnseg.errors import UsageError
from fcnseg.folder.mask_files import MaskFormat
from fcnseg.images import DEFAULT_LIMITS, ImageLimits
from fcnseg.pictures import Pictures
from fcnseg.regions import RegionQuery
from fcnseg.types import LabelMap, require_names

Tile: TypeAlias = int | Literal["auto", "none"]


@dataclass(frozen=True)
class FolderOptions:
    """The options of a job.

    Attributes:
        mask_format: How masks are stored.
        overlay: Whether to write the image tinted with its classes' colours too.
        confidence: Whether to write the winning class's probability at every pixel, 0 to 255, too.
        heatmaps: Classes, by names (any case) or decimal ids, whose scores are drawn over the greyed image.
        top: Number of further heatmaps for each image: those of its most probable classes.
        regions: Which regions to list; None for no list.
        limits: Images beyond these limits fail.
        upright: Whether to apply an EXIF orientation; otherwise masks have the orientation of the stored pixels.
        overwrite: Whether to segment images again that are done already, also by another model.
        report: Whether to write report.html.
        tile: Segment images in tiles whose cores have at most this many rows and columns; "auto" does so if a run on
            the whole image would take more than `memory_bytes`, "none" never.
        workers: Threads that decode, and as many that write; 0 takes one per core.
        batch: Most images in one run; 0 takes the tuned number, else 1 on the CPU, where more gain nothing, and 8 on
            CUDA.
        in_flight: Concurrent requests to a server.
        memory_bytes: Limit on the memory of all images in progress, decoded and with their answers, in bytes; runs of
            the model may take as much again.

    Raises:
        UsageError: A number is out of range, there is no such mask format or tile, regions is not a `RegionQuery`, or
            heatmaps is a single string, a generator or numbers.
    """

    mask_format: MaskFormat = MaskFormat.PNG
    overlay: bool = False
    confidence: bool = False
    heatmaps: tuple[str, ...] = ()
    top: int = 0
    regions: RegionQuery | None = None
    limits: ImageLimits = field(default=DEFAULT_LIMITS)
    upright: bool = True
    overwrite: bool = False
    report: bool = True
    tile: Tile = "auto"
    workers: int = 0
    batch: int = 0
    in_flight: int = 8
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        require_names("heatmaps", self.heatmaps)
        if self.mask_format not in tuple(MaskFormat):
            raise UsageError(f"there is no mask format {self.mask_format!r}; there are {', '.join(MaskFormat)}")
        object.__setattr__(self, "mask_format", MaskFormat(self.mask_format))
        if not isinstance(self.regions, RegionQuery | None):
            raise UsageError(f"regions is {self.regions!r}; give a RegionQuery, or None for no list")
        if not isinstance(self.tile, int) and self.tile not in ("auto", "none"):
            raise UsageError(f"tile is {self.tile!r}; it must be 'auto', 'none' or a number of pixels")
        if isinstance(self.tile, int) and self.tile < 1:
            raise UsageError(f"tiles of {self.tile} pixels were asked for; they must have at least 1")
        for name, value, least in (
            ("top", self.top, 0),
            ("workers", self.workers, 0),
            ("batch", self.batch, 0),
            ("in_flight", self.in_flight, 1),
            ("memory_bytes", self.memory_bytes, 1),
        ):
            if value < least:
                raise UsageError(f"{name} is {value}; it must be at least {least}")

    @property
    def threads(self) -> int:
        """Threads that decode, and as many that write."""
        return self.workers or usable_cores()

    @property
    def draws(self) -> bool:
        """Whether any further file is written beside masks."""
        return self.overlay or self.confidence or bool(self.heatmaps) or bool(self.top) or self.regions is not None

    def pictures(self, label_map: LabelMap) -> Pictures:
        """Return which pictures to write beside masks.

        Raises:
            UsageError: A class is not one of the model's.
        """
        for name in self.regions.classes if self.regions else ():
            label_map.find(name)
        heatmaps = tuple(label_map.find(name) for name in self.heatmaps)
        return Pictures(self.overlay, heatmaps, self.top, self.regions, self.confidence)

    def named(self, label_map: LabelMap, tile: str | int) -> dict[str, Any]:
        """Return the options on which the output files depend, as a JSON object.

        Args:
            label_map: The classes.
            tile: How images are tiled (`JobModel.tile`).
        """
        regions = self.regions
        return {
            "mask_format": str(self.mask_format),
            "upright": self.upright,
            "tile": tile,
            "overlay": self.overlay,
            "confidence": self.confidence,
            "heatmaps": [label_map.find(name).id for name in self.heatmaps],
            "top": self.top,
            "regions": regions
            and {
                "classes": [label_map.find(name).id for name in regions.classes],
                "threshold": regions.threshold,
                "min_pixels": regions.min_pixels,
                "limit": regions.limit,
            },
        }


DEFAULT_OPTIONS = FolderOptions()
