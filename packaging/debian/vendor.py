# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies the pure Python packages that the Debian package brings along, as they are in .venv: those that were tested.

``vendor.py DIRECTORY``.  cryptography, which is compiled and only agno:// needs, comes from Debian; what rich needs
only to colour source code and to read Markdown is left out.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

PACKAGES = ("click", "prometheus-client", "pyroute2", "rich")

_INTERPRETER = re.compile(rb"\A#!.*\n")
"""A first line that names one, which Debian does not have under that name; these are modules."""


def main(target: Path) -> None:
    for name in PACKAGES:
        found = importlib.metadata.distribution(name)
        files = found.files
        if not files or not str(found.locate_file("")).startswith(sys.prefix):
            sys.exit(f"vendor: {name}: not in {sys.prefix}; run: .venv/bin/pip install --ignore-installed {name}")
        for file in files:
            if ".." in file.parts or file.suffix == ".pyc" or file.name in ("RECORD", "INSTALLER", "REQUESTED"):
                continue
            if file.suffix == ".so":
                sys.exit(f"vendor: {name}: is not pure Python: {file}")
            place = target.joinpath(*file.parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            content = Path(str(found.locate_file(file))).read_bytes()
            place.write_bytes(_INTERPRETER.sub(b"", content) if file.suffix == ".py" else content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
