"""TIFF files as Pillow reads them, but for planes, a band each.

Those that are stored uncompressed libtiff reads: Pillow 13 by itself takes their samples of 16 bits for such of 8, and
fails on bands beyond those of the colour. Of several grey ones it would take the first, without a word; stored
together it refuses them, and so are planes.
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
        SyntaxError: It is damaged, or of a kind that Pillow does not know.
    """

    def _open(self) -> None:
        assert self.fp is not None, "it was opened for this"  # noqa: S101
        if self.fp.read(4) == _BIG_ENDIAN_BIGTIFF:
            raise SyntaxError("big-endian BigTIFF is unknown to Pillow")  # which would read it as the older TIFF
        self.fp.seek(0)
        super()._open()

    def _setup(self) -> None:
        tags = self.tag_v2
        bands, bits = tags.get(SAMPLESPERPIXEL, 1), tags.get(BITSPERSAMPLE, (1,))
        if is_grey(tags) and (bands > 2 or (bands == 2 and bits[0] > 8)):
            raise SyntaxError(f"unknown which of {bands} grey bands are the colours; PHOTOMETRIC=RGB would say it")
        stored = tags.get(COMPRESSION, _UNCOMPRESSED)
        if stored == _UNCOMPRESSED and tags.get(PLANAR_CONFIGURATION) == _PLANES:
            tags[COMPRESSION] = _PACKBITS  # Pillow leaves what is compressed to libtiff, which reads the tag for itself
        super()._setup()
        tags[COMPRESSION] = stored
