# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/vnl.md, made from what the plugins say of themselves: ``python -m vdexdp.plugins.table > docs/vnl.md``.

Only built-in schemes: what third parties have installed here must not get into the page.
"""

from __future__ import annotations

from collections.abc import Iterable

from vdexdp.plugins import registry
from vdexdp.plugins.base import Grammar, NoKernelEnd, Option, Plugin
from vdexdp.vnl import DEFAULT_FILES

_OPTIONS: dict[Grammar, str] = {
    "raw": "",
    "slash": "/option/…",
    "bracket": "[option/…]",
    "nested": "[option/…]",
    "nested-slash": "/option/…",
}

_INTRODUCTION = f"""\
<!-- Made by "python -m vdexdp.plugins.table"; edit the plugins instead. -->
# Virtual Network Locators

A VNL names one end of a cable: `scheme://body`. Without `://` it is the path of a vde switch. A VNL that is the path
of a regular file stands for the first line of that file. The empty VNL stands for
{" or ".join(f"`~/{name}`" for name in DEFAULT_FILES)}, whichever exists first, else for `vde://`.

Options are `key=value` or bare flags, between slashes or in brackets as the table shows. A key may be shortened, and
the first one that fits is meant: `/p=5` is `/port=5`. The last repetition wins. What contains a delimiter goes into
quotes, `'…'` or `"…"`; one character is protected by `\\`, or written `%XX` in hexadecimal:
`slirp:///host=10.0.2.2%2F24`. A VNL in braces is another end that the scheme works upon; braces nest to any depth.
In a shell a VNL with spaces or one of its characters (`>`, `[`, `{{`) has to be quoted: `'cmd://ssh host vde_plug'`.

The path says how frames travel: *kernel* means that two such ends are joined in the kernel, and frames between them
touch no process; *user* means that frames pass through the process that plugs, and enter the kernel path at the other
end, where there is one. `vdexdp explain VNL VNL` tells which path a cable takes here, and why.
"""


def page() -> str:
    """The whole of docs/vnl.md."""
    return "\n".join((_INTRODUCTION, table(), details()))


def table(schemes: Iterable[str] = tuple(registry.BUILTIN)) -> str:
    """All ``schemes`` in one Markdown table: form, options and defaults, example, path."""
    lines = ["| VNL | what | options (defaults) | example | path |", "|---|---|---|---|---|"]
    for plugin in map(registry.get, schemes):
        options = ", ".join(_brief(option) for option in plugin.options) or "–"
        example = f"`{plugin.example}`" if plugin.example else "–"
        lines.append(_row(f"`{_shape(plugin)}`", plugin.summary, options, example, _path(plugin)))
    return "\n".join(lines) + "\n"


def details(schemes: Iterable[str] = tuple(registry.BUILTIN)) -> str:
    """What each option of ``schemes`` means, a section for each scheme that has options."""
    sections = []
    for plugin in map(registry.get, schemes):
        if not plugin.options:
            continue
        rows = [_row(f"`{_key(option)}`", option.default or "–", option.help) for option in plugin.options]
        head = ["| option | default | meaning |", "|---|---|---|"]
        sections.append("\n".join((f"## {plugin.scheme}://\n", *head, *rows)) + "\n")
    return "\n".join(sections)


def _shape(plugin: Plugin) -> str:
    options = _OPTIONS[plugin.grammar] if plugin.options else ""
    inner = "{VNL}" if plugin.grammar.startswith("nested") else ""
    return f"{plugin.scheme}://{plugin.address}{options}{inner}"


def _key(option: Option) -> str:
    if not option.key:
        return "word"
    return option.key if option.flag else f"{option.key}="


def _brief(option: Option) -> str:
    return f"`{_key(option)}`" + (f" ({option.default})" if option.default else "")


def _path(plugin: Plugin) -> str:
    """Whether the plugin's kernel_end may give one, by its declared type: calling it would look for interfaces here."""
    if plugin.path:
        return plugin.path
    declared = str(plugin.kernel_end.__annotations__.get("return", ""))
    if declared.rpartition(".")[2] != NoKernelEnd.__name__ and type(plugin).kernel_end is not Plugin.kernel_end:
        return "kernel"
    return "user"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


if __name__ == "__main__":
    print(page(), end="")
