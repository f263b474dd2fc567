# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon has to say: lines on stderr, for people or one JSON object each, and the last ones in memory.

A daemon that was started on demand has a stderr that nobody reads and that must not grow: there it says what goes wrong
only.  The last records are kept whoever listens; ``vdexdp support-bundle`` asks for them.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections import deque
from datetime import UTC, datetime
from typing import Any, Final, Literal

from vdexdp.errors import VdexdpError

KEPT: Final = 500
_PRIORITIES: Final = {"info": 6, "warning": 4, "error": 3}
"""Of syslog; sd-daemon(3) takes them in angle brackets at the start of a line."""

Form = Literal["text", "json"]
Level = Literal["info", "warning", "error"]


class Log:
    """``quiet`` keeps what is merely of interest from stderr; ``verbose`` adds tracebacks to expected errors."""

    def __init__(self, form: Form = "text", *, quiet: bool = False, verbose: bool = False) -> None:
        self.form = form
        self.quiet = quiet
        self.verbose = verbose
        self.records: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._journal = _is_journal(sys.stderr.fileno())

    def say(self, message: str, level: Level = "info", **fields: Any) -> None:
        """One record.  ``fields`` are for programs; ``message`` says it all to people."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"time": now, "level": level, "message": message, "pid": os.getpid()} | fields
        self.records.append(record)
        if self.quiet and level == "info":
            return
        text = json.dumps(record, default=str) if self.form == "json" else f"vdexdp: {message}"
        if self.form == "text" and "traceback" in fields:
            text = fields["traceback"].rstrip()
        text = "".join(one if one.isprintable() or one in "\n\t" else "?" for one in text)  # users' words may be in it
        prefix = f"<{_PRIORITIES[level]}>" if self._journal else ""
        try:
            print("\n".join(prefix + line for line in text.splitlines()), file=sys.stderr, flush=True)
        except OSError:  # whoever listened is gone, or a disk is full: no reason to stop
            pass

    def failure(self, error: BaseException) -> None:
        """An error that nobody else gets to see; a bug of ours with its traceback."""
        fields: dict[str, Any] = {"error": type(error).__name__}
        if isinstance(error, VdexdpError):
            fields |= {"subject": error.subject, "cause": error.cause, "hint": error.hint}
        if self.verbose or not isinstance(error, VdexdpError):
            fields["traceback"] = "".join(traceback.format_exception(error))
        self.say(str(error), "error", **fields)


def _is_journal(fd: int) -> bool:
    """Whether a descriptor leads to systemd's journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        info = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"
