"""The job file: which model and options an output folder belongs to."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcnseg.errors import UsageError
from fcnseg.files import write_text
from fcnseg.folder.earlier import put_aside
from fcnseg.folder.names import COCO, JOB, MANIFEST, PARQUET, REPORT
from fcnseg.types import LabelMap


@dataclass(frozen=True)
class JobFile:
    """The content of `fcnseg.json` in an output folder.

    Attributes:
        model: The model's identity: the file's SHA-256, or a server's model and version, and the hash of the label map.
        options: The options on which the output files depend.
        label_map: What the ids mean.
    """

    model: dict[str, Any]
    options: dict[str, Any]
    label_map: LabelMap

    def text(self) -> str:
        """Return the file's content."""
        classes = [{"id": c.id, "name": c.name, "colour": list(c.colour)} for c in self.label_map.classes]
        return json.dumps({"model": self.model, "options": self.options, "classes": classes}, indent=1) + "\n"


def claim(output: Path, job: JobFile, *, overwrite: bool) -> bool:
    """Claim an output folder for a job.

    Returns:
        Whether the job continues an earlier one; False if it starts anew.

    Raises:
        UsageError: The folder's files were made by another model or with other options, and `overwrite` is False.
    """
    path = output / JOB
    known = path.exists()
    if known and not overwrite:
        found = _read(path)
        remedy = "name another folder, or make everything anew with --overwrite"
        if found.get("model") != job.model:
            raise UsageError(
                f"the masks in {output} were made by another model ({_brief(found.get('model'))}, not"
                f" {_brief(job.model)}); {remedy}"
            )
        then = found.get("options") or {}
        changed = [
            f"{name} was {json.dumps(then.get(name))} and is {json.dumps(value)}"
            for name, value in job.options.items()
            if then.get(name) != value
        ]
        if changed:
            raise UsageError(f"the masks in {output} were made with other options ({', '.join(changed)}); {remedy}")
    goes_on = known and not overwrite
    if not goes_on:  # before the new job file is written: else the old job's summaries might pass for the new job's
        if known:
            put_aside(output)
        for name in (PARQUET, COCO, REPORT) if known else (MANIFEST,):
            (output / name).unlink(missing_ok=True)
    write_text(path, job.text())
    return goes_on


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{path} does not say which model made the masks beside it; make them again with --overwrite")
    return found


def _brief(model: object) -> str:
    if not isinstance(model, dict):
        return "unknown"
    if "sha256" in model:
        return f"{model.get('architecture')} {model.get('variant')}, SHA-256 {str(model['sha256'])[:12]}"
    return f"{model.get('name')} version {model.get('version')} of a server"
