# SPDX-License-Identifier: GPL-2.0-or-later
"""TOML files that administrators write: right as a whole or not read at all, mistakes named by file, line and key."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from vdexdp.errors import HostError, RequestError


class TomlFile:
    """A file that could be read.  ``tables`` is what TOML has made of it."""

    def __init__(self, path: Path, text: str, tables: dict[str, Any]) -> None:
        self.path = path
        self.lines = text.splitlines()
        self.tables = tables

    @classmethod
    def read(cls, path: Path, why_private: str, *, owned: bool = False) -> TomlFile:
        """``why_private`` says what is wrong with a file that anybody may write; an ``owned`` one has to belong to
        root, or to whoever runs this, and only that user may write it.

        Raises RequestError where there is none, and naming file, line and key; HostError where it can't be read.
        """
        try:
            with path.open("rb") as file:
                info = os.fstat(file.fileno())
                data = file.read()
            text = data.decode()
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise RequestError(f"{path}:{line}", "not UTF-8") from error
        except FileNotFoundError as error:
            raise RequestError(str(path), "no such file", "write it, or name another") from error
        except OSError as error:
            raise HostError.from_oserror(str(path), error) from error
        if info.st_mode & stat.S_IWOTH:
            raise RequestError(str(path), f"anybody may write it, and {why_private}", f'"chmod o-w {path}"')
        if owned and info.st_mode & stat.S_IWGRP and info.st_gid != 0:
            raise RequestError(str(path), f"its group may write it, and {why_private}", f'"chmod g-w {path}"')
        if owned and info.st_uid not in (0, os.geteuid()):
            raise RequestError(str(path), f"it belongs to user {info.st_uid}, and {why_private}", f'"chown 0 {path}"')
        try:
            return cls(path, text, tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            cause, _, where = str(error).partition(" (at ")
            number = re.match(r"line (\d+)", where)
            raise _unreadable(path, text, int(number[1]) if number else 0, cause) from error

    def named_tables(self, kind: str, known: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
        """The tables [kind.NAME], beside which there are only the keys ``known``.  Raises RequestError."""
        for key in self.tables:
            if key not in (kind, *known):
                also = f", and the keys {', '.join(known)}" if known else ""
                raise self.wrong("", key, "unknown", f"there are only tables [{kind}.NAME]{also}")
        found = self.tables.get(kind, {})
        if not isinstance(found, dict):
            raise self.wrong("", kind, "not a table", f"write [{kind}.NAME]")
        for name, values in found.items():
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name):
                raise self.wrong(f"{kind}.{name}", "", "not a name", "use letters, digits, dot, dash and underscore")
            if not isinstance(values, dict):
                raise self.wrong("", f"{kind}.{name}", "not a table", f"write [{kind}.{name}]")
        return found

    def wrong(self, table: str, key: str, cause: str, hint: str = "") -> RequestError:
        """The error for a key of a table [KIND.NAME]; with ``table`` "", of the file itself."""
        what = ".".join(part for part in (table, key) if part)
        return RequestError(f"{self.path}:{self._line(table, key)}: {what}", cause, hint)

    def _line(self, table: str, key: str) -> int:
        """Where a key stands, 1 if it is written in an unusual way; that of the table without a key."""
        kind, _, name = table.partition(".")
        headers = {table, f'{kind}."{name}"', f"{kind}.'{name}'"}
        inside, header = not table, 1
        for number, line in enumerate(self.lines, 1):
            text = line.strip()
            if text.startswith("[") and (inside_header := text.strip("[]").split("]")[0].strip()):
                inside = inside_header in headers
                header = number if inside else header
                if not table and (inside_header + ".").startswith(key + "."):
                    return number
                inside |= not table
            if inside and key and re.match(rf"[\"']?{re.escape(key)}[\"']?\s*[=.]", text):
                return number
        return header


def _unreadable(path: Path, text: str, line: int, cause: str) -> RequestError:
    """What TOML can't read, with the table and the key that come last before it; ``line`` 0 is the file's end."""
    lines = text.splitlines()
    line = line or len(lines)
    table, key = "", ""
    for one in lines[:line]:
        if found := re.match(r"\s*\[([^\[\]]+)\]", one):
            table, key = found[1], ""
        elif found := re.match(r"\s*([\w\"'.-]+)\s*=", one):
            key = found[1]
    what = ".".join(part for part in (table, key) if part)
    return RequestError(f"{path}:{line}" + (f": {what}" if what else ""), cause[:1].lower() + cause[1:])
