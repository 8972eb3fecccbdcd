"""The server's log: lines for people or JSON, each with the id of the request it belongs to.

A record may carry `fields`, a mapping of names to what JSON can hold, which stand beside its message.
"""

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from serving.calls import current_call, current_span

LogFormat = Literal["human", "json"]
COMMAND = "fcnseg.cli"
"""The logger of what the command line says by itself: warnings, and the error that ends the process."""
_TRANSPORT = "grpc._cython.cygrpc"
_UNDELIVERED = "ExecuteBatchError"  # which cygrpc has, and does not export
_NO_METADATA = "UnicodeDecodeError"
_CANCELLED = "CancelledError"  # which it tells of on Python 3.13
_WORD = re.compile(r"[!#-~]+")
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class HumanFormatter(logging.Formatter):
    """TIME LEVEL LOGGER: MESSAGE FIELD=VALUE ... request_id=ID; values that are no single word are quoted.

    A message stays one line, and tells a terminal nothing: a file that cannot be opened may have a part in it.
    """

    def __init__(self, always: Mapping[str, object] | None = None) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._always = always or {}

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Write the line that a traceback may follow."""
        message = _NO_TEXT.sub(lambda found: ascii(found[0])[1:-1], super().formatMessage(record))
        return " ".join([message, *(f"{k}={_quote(v)}" for k, v in {**_read_fields(record), **self._always}.items())])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `message`, `request_id`, `exception`, and the fields."""

    def __init__(self, always: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self._always = always or {}

    def format(self, record: logging.LogRecord) -> str:
        """Write the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {**_read_fields(record), **self._always}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _read_fields(record: logging.LogRecord) -> dict[str, object]:
    """Return what stands beside a record's message; its call is the one that the writing thread works for."""
    fields: dict[str, object] = dict(getattr(record, "fields", {}))
    call = current_call.get()
    if call is not None:
        fields["request_id"] = call.request_id
    if (span := current_span.get()) is not None and span.trace_id:
        fields["trace_id"] = span.trace_id
    return fields


def _quote(value: object) -> str:
    text = str(value)
    return text if _WORD.fullmatch(text) else json.dumps(text)


def set_up_logs(log_format: LogFormat, level: str, process: int | None = None) -> None:
    """Let the process's log have a format, and the server's own lines from a level on.

    Args:
        log_format: For people, or for machines.
        level: `info` or `warning`; where the log is at a lower one already, it stays.
        process: The number of this process, where several write to the log.
    """
    always = {} if process is None else {"process": process}
    formatter = JsonFormatter(always) if log_format == "json" else HumanFormatter(always)
    root = logging.getLogger()
    # For people the command's own lines stay as those of other commands.
    own = logging.getLogger(COMMAND).handlers if log_format == "json" else []
    for handler in (*root.handlers, *own):
        handler.setFormatter(formatter)
    logging.getLogger(_TRANSPORT).addFilter(tells_of_a_fault)
    logging.getLogger("serving").setLevel(min(root.level, logging.getLevelNamesMapping()[level.upper()]))


def tells_of_a_fault(record: logging.LogRecord) -> bool:
    """Tell whether a line of gRPC's is about more than what any stranger may do.

    That is to cancel a call, to go away before an answer is delivered, or to send metadata that is no text, which gRPC
    would quote.
    """
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ not in {_UNDELIVERED, _NO_METADATA, _CANCELLED}
