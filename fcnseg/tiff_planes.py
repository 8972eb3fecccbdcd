"""TIFF files as Pillow reads them, but for planes, a band each, that are stored uncompressed: those libtiff reads.

Pillow 13 by itself takes their samples of 16 bits for such of 8, and fails on bands beyond those of the colour.
"""

from PIL.TiffImagePlugin import COMPRESSION, PLANAR_CONFIGURATION, TiffImageFile

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
        stored = tags.get(COMPRESSION, _UNCOMPRESSED)
        if stored == _UNCOMPRESSED and tags.get(PLANAR_CONFIGURATION) == _PLANES:
            tags[COMPRESSION] = _PACKBITS  # Pillow leaves what is compressed to libtiff, which reads the tag for itself
        super()._setup()
        tags[COMPRESSION] = stored
