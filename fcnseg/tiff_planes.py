"""Pillow's TIFF reader with corrections for planar files, which store each band separately.

Uncompressed planes are decoded by libtiff: Pillow 13's own decoder takes their 16-bit samples for 8-bit ones, and fails
on bands beyond those of the colour. Several grey planes are refused: Pillow would silently take the first one, although
it refuses several grey bands that are stored interleaved.
"""

from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COMPRESSION,
    PLANAR_CONFIGURATION,
    SAMPLESPERPIXEL,
    TiffImageFile,
)

from fcnseg.tiff_samples import is_grey

_UNCOMPRESSED, _PACKBITS = 1, 32773
_PLANES = 2
_BIG_ENDIAN_BIGTIFF = b"MM\0+"


class TiffFile(TiffImageFile):
    """A TIFF file's header, and its pixels when they are loaded.

    Raises:
        SyntaxError: The file is damaged, or of a kind that Pillow does not support.
    """

    def _open(self) -> None:
        assert self.fp is not None, "it was opened for this"  # noqa: S101
        if self.fp.read(4) == _BIG_ENDIAN_BIGTIFF:
            raise SyntaxError("big-endian BigTIFF is unknown to Pillow")  # Pillow would read it as a classic TIFF
        self.fp.seek(0)
        super()._open()

    def _setup(self) -> None:
        tags = self.tag_v2
        bands, bits = tags.get(SAMPLESPERPIXEL, 1), tags.get(BITSPERSAMPLE, (1,))
        if is_grey(tags) and (bands > 2 or (bands == 2 and bits[0] > 8)):
            raise SyntaxError(f"unknown which of {bands} grey bands are the colours; PHOTOMETRIC=RGB would say it")
        stored = tags.get(COMPRESSION, _UNCOMPRESSED)
        if stored == _UNCOMPRESSED and tags.get(PLANAR_CONFIGURATION) == _PLANES:
            tags[COMPRESSION] = _PACKBITS  # makes Pillow use libtiff, which reads the actual tag itself
        super()._setup()
        tags[COMPRESSION] = stored
