# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp dpipe``: commands joined by pipes in both directions.

``a = b`` connects the output of each to the input of the other.  A command between two ``=`` talks to its left
neighbour through stdin and stdout, and to its right one through the descriptors that ALTERNATE_STDIN and
ALTERNATE_STDOUT name.  ``=} f }=`` and ``={ f {=`` put a filter into one direction only.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import click

from vdexdp.cli.background import go_background
from vdexdp.cli.pipes import WATCHED, Chain, Role, Stage, supervise
from vdexdp.errors import HostError, RequestError

_OPENERS = {"=": "", "=}": "}", "={": "{"}


def parse_chain(words: Sequence[str]) -> list[Stage]:
    """Split a command line at its ``=`` signs.  Raises RequestError."""
    stages: list[Stage] = []
    argv: list[str] = []
    direction = ""
    for word in words:
        closes = direction and word.startswith(direction) and word[1:] in _OPENERS
        opener = word[1:] if closes else word
        if opener not in _OPENERS:
            argv.append(word)
            continue
        if not argv:
            raise RequestError(word, f"no command in front of the {_ordinal(len(stages) + 1)} one of these signs")
        role: Role = {"": "both", "}": "right", "{": "left"}[direction]  # type: ignore[assignment]
        stages.append(Stage(tuple(argv), role if stages else "end"))
        argv = []
        direction = _OPENERS[opener] or ("" if closes else direction)
    if direction:
        raise RequestError("=" + direction, "is not closed", f'write "{direction}=" behind the filter')
    if not stages:
        raise RequestError("dpipe", "needs two commands", "write: vdexdp dpipe command = command")
    if not argv:
        raise RequestError("=", "no command behind the last one of these signs")
    return [*stages, Stage(tuple(argv), "end")]


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


@contextmanager
def _note(path: str, text: str) -> Iterator[None]:
    """A file that says ``text`` for as long as the chain runs.  Raises HostError."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{text}\n")
    except OSError as error:
        raise HostError.from_oserror(path, error) from error
    try:
        yield
    finally:
        try:
            os.unlink(path)
        except OSError:
            pass


def _group() -> int:
    return -os.getpgrp()


def _remove_later(paths: Sequence[str]) -> None:
    """Leave a process behind that removes ``paths`` when this one, or what it has become, has ended."""
    pidfd = os.pidfd_open(os.getpid())
    if os.fork():
        os.close(pidfd)
        return
    for number in WATCHED:
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, pidfd)
    os.closerange(pidfd + 1, 1024)
    select.select([pidfd], [], [])
    for path in paths:
        try:
            os.unlink(path)
        except OSError:
            pass
    os._exit(0)


@click.command(
    "dpipe",
    context_settings={
        "ignore_unknown_options": False,
        "allow_interspersed_args": False,
        "help_option_names": ["-h", "--help"],
    },
)
@click.option("-d", "--daemon", is_flag=True, help="Run in the background.")
@click.option("-p", "--pidfile", metavar="FILE", help="Write the process id to FILE.")
@click.option("-P", "--pgrpfile", metavar="FILE", help="Write the process group id, negated, to FILE.")
@click.option(
    "-n",
    "--nowrapproc",
    is_flag=True,
    help="Keep no process for dpipe itself: it becomes the last command. Commands that wait for one another in a "
    "circle then do so for ever.",
)
@click.option("-N", "--nowrapnoclean", is_flag=True, help="As -n, and leave FILE behind.")
@click.argument("chain", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARG]... = COMMAND [ARG]... [= ...]")
def dpipe(
    daemon: bool,
    pidfile: str | None,
    pgrpfile: str | None,
    nowrapproc: bool,
    nowrapnoclean: bool,
    chain: tuple[str, ...],
) -> int:
    """Join commands by pipes in both directions.

    A command between two "=" has its left neighbour on stdin and stdout, its right neighbour on the descriptors
    named by ALTERNATE_STDIN and ALTERNATE_STDOUT. "=} filter }=" filters what goes right, "={ filter {=" what goes
    left.

    \b
    vdexdp dpipe vde_plug /tmp/s1 = wirefilter -l 10 = vde_plug /tmp/s2
    """
    stages = parse_chain(chain)
    files = [(os.path.abspath(path), number) for path, number in ((pidfile, os.getpid), (pgrpfile, _group)) if path]
    if daemon:
        go_background()()
    elif os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    with ExitStack() as notes:
        for path, number in files:
            notes.enter_context(_note(path, str(number())))
        running = Chain(stages)
        if nowrapproc or nowrapnoclean:
            if files and not nowrapnoclean:
                _remove_later([path for path, _ in files])
            running.become_last()
        return supervise(running)
