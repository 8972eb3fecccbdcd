"""Write a manifest as Parquet, if pyarrow is installed: a column for each field of a row."""

from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from fcnseg.files import printable, replacing
from fcnseg.folder.manifest import read_rows

_ROWS_AT_A_TIME = 1000
_AREA = pa.struct({"id": pa.int32(), "name": pa.string(), "pixels": pa.int64(), "fraction": pa.float64()})
_PEAK = pa.struct({"id": pa.int32(), "name": pa.string(), "probability": pa.float64()})
_STAGES = pa.struct({name: pa.float64() for name in ("decode", "queue", "infer", "encode", "total")})
_SCHEMA = pa.schema(
    {
        "image": pa.string(),
        "size_bytes": pa.int64(),
        "modified_ns": pa.int64(),
        "mask": pa.string(),
        "files": pa.list_(pa.string()),
        "height": pa.int32(),
        "width": pa.int32(),
        "classes": pa.list_(_AREA),
        "top": pa.list_(_PEAK),
        "timings_ms": _STAGES,
        "error": pa.string(),
    }
)


def write_parquet(manifest: Path, path: Path) -> None:
    """Write a manifest's rows, in their order, a thousand at a time."""
    # An open file, because pyarrow does not take paths that are not valid Unicode.
    with replacing(path) as whole, whole.open("wb") as file, parquet.ParquetWriter(file, _SCHEMA) as writer:
        rows: list[dict[str, Any]] = []
        for row in read_rows(manifest):
            names = {"image": _text(row.image), "mask": _text(row.mask), "error": _text(row.error)}
            rows.append({**row.__dict__, **names, "files": [_text(name) for name in row.files]})
            if len(rows) == _ROWS_AT_A_TIME:
                writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
                rows.clear()
        writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))


def _text(name: str | None) -> str | None:
    """Return a name as valid Unicode, which Parquet requires."""
    return name and printable(name)
