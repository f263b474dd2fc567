# SPDX-License-Identifier: GPL-2.0-or-later
"""Man pages and shell completion, made of the commands themselves: they cannot say anything else than ``--help``.

``python -m vdexdp.cli.manual DIRECTORY`` writes them; ``scripts/gen-man`` does so for the ones that are packaged.  The
pages are man(7) with as few requests as possible.  Completion is click's: the script asks the program itself.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from vdexdp import __version__
from vdexdp.cli.main import group

PROGRAM = "vdexdp"
RAW = ("vde_plug",)
"""Commands whose options click does not know; their own help text is printed instead."""

SHELLS = {
    "bash": "completion/bash/vdexdp",
    "zsh": "completion/zsh/_vdexdp",
    "fish": "completion/fish/vdexdp.fish",
}


def _text(text: str) -> str:
    """Plain text as man(7) wants it: no character of its own is taken for a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in text.splitlines())


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of a help text; those after click's "\\b" keep their lines."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        block = [line.strip() for line in paragraph.splitlines()]
        if block[0] == "\b":
            lines += [".PP", ".nf", *map(_text, block[1:]), ".fi"]
        else:
            lines += [".PP", _text(" ".join(block))]
    return lines


def _options(command: click.Command, context: click.Context) -> list[str]:
    lines: list[str] = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            lines += [".TP", rf"\fB{_text(record[0])}\fR", _text(" ".join(record[1].split()))]
    return [".SH OPTIONS", *lines] if lines else []


def _page(path: tuple[str, ...], command: click.Command, context: click.Context) -> str:
    name = "-".join(path)
    about = command.help or ""
    summary = " ".join(re.split(r"\n\s*\n", about.strip())[0].split()).rstrip(".")
    usage = context.get_usage().removeprefix("Usage: ")
    lines = [
        r".\" SPDX-License-Identifier: GPL-2.0-or-later",
        r".\" Made by scripts/gen-man of the help texts in vdexdp/cli.",
        f'.TH {name.upper()} 1 "" "vdexdp {__version__}" "vdexdp"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(summary[:1].lower() + summary[1:])}",
        ".SH SYNOPSIS",
    ]
    if path[-1] in RAW:
        from vdexdp.cli.vde_plug import USAGE

        said = USAGE.format(name=" ".join(path)).removeprefix("Usage: ")
        lines += [".nf", _text(said.rstrip()), ".fi"]
        return "\n".join(lines) + "\n"
    lines += [_text(" ".join(usage.split())), ".SH DESCRIPTION", *_paragraphs(about)[1:], *_options(command, context)]
    below: list[str] = []
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for word in command.list_commands(context):
            child = command.get_command(context, word)
            if child is not None and not child.hidden:
                lines += [".TP", rf"\fB{_text(word)}\fR", _text(child.get_short_help_str(200))]
                below.append(f"{name}-{word}")
    above = ["-".join(path[:-1])] if len(path) > 1 else []
    if above or below:
        lines += [".SH SEE ALSO", ",\n".join(rf"\fB{_text(one)}\fR(1)" for one in above + below)]
    return "\n".join(lines) + "\n"


def _walk(path: tuple[str, ...], command: click.Command, parent: click.Context | None) -> dict[str, str]:
    settings: dict[str, Any] = {**command.context_settings, "terminal_width": 100}
    context = click.Context(command, info_name=path[-1], parent=parent, **settings)
    pages = {f"man/{'-'.join(path)}.1": _page(path, command, context)}
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            child = command.get_command(context, word)
            if child is not None and not child.hidden:
                pages |= _walk((*path, word), child, context)
    return pages


def files() -> dict[str, str]:
    """The content of each file, by its path."""
    made = _walk((PROGRAM,), group, None)
    for shell, place in SHELLS.items():
        completion = get_completion_class(shell)
        assert completion is not None
        made[place] = completion(group, {}, PROGRAM, "_VDEXDP_COMPLETE").source().strip() + "\n"
    return made


def main(directory: str) -> None:
    """Write all files below a directory, and remove pages of commands that are no more."""
    root, made = Path(directory), files()
    for place, text in made.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in (root / "man").iterdir():
        if f"man/{path.name}" not in made:
            path.unlink()


if __name__ == "__main__":
    main(sys.argv[1])
