# SPDX-License-Identifier: GPL-2.0-or-later
"""The command group.  A command's module is imported when the command is used, or when its help line is asked for.

Errors end here: an error of ours becomes one line on stderr and its exit status; anything else is a bug, and its
traceback is shown with ``-v`` only, as it says nothing to a user.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import click

from vdexdp import __version__
from vdexdp.cli.report import report

COMMANDS = {
    "vde_plug": "plug_command:vde_plug",
    "dpipe": "dpipe:dpipe",
    "vdens": "vdens:vdens",
    "wirefilter": "wirefilter:wirefilter",
    "daemon": "daemon:daemon",
    "show": "show:show",
    "fdb": "fdb:fdb",
    "explain": "explain:explain",
    "doctor": "doctor:doctor",
    "bench": "bench:bench",
    "compile": "compile:compile_",
    "metrics": "metrics:metrics",
    "top": "top:top",
    "trace": "trace:trace",
    "capture": "capture:capture",
    "mirror": "mirror:mirror",
    "up": "networks:up",
    "down": "networks:down",
    "diff": "networks:diff",
    "support-bundle": "support_bundle:support_bundle",
}
"""Command → "module in vdexdp.cli:click command", in the order of the help text."""


def available() -> list[str]:
    """The commands whose modules are installed."""
    return [
        name for name, target in COMMANDS.items() if importlib.util.find_spec(f"vdexdp.cli.{target.partition(':')[0]}")
    ]


class LazyGroup(click.Group):
    """A group whose commands are imported one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return available()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in available():
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"vdexdp.cli.{module}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in available():
            from vdexdp.vnl import suggest

            raise click.UsageError(f"no such command: {args[0]}; {suggest(args[0], available())}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="vdexdp", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Show a traceback where something fails.")
def group(verbose: bool) -> None:
    """Virtual Distributed Ethernet with its data path in the Linux kernel.

    Network ends are named by VNLs such as tap://tap0 or vxvde://234.0.0.1; "vdexdp vde_plug VNL VNL" joins two.
    """


def run(arguments: list[str]) -> int:
    """Run one command line; return the exit status."""
    try:
        result: Any = group.main(arguments, prog_name="vdexdp", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        return report(error, verbose=arguments[:1] in (["-v"], ["--verbose"]))
    return result if isinstance(result, int) else 0
