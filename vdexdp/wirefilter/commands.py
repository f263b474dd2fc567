# SPDX-License-Identifier: GPL-2.0-or-later
"""The management language of a wire: one command per line, text in, text out, as stock wirefilter's.

An answer is its data, framed by ``0000 DATA END WITH '.'`` and ``.`` for the commands that have any, and a closing
``1000 Success`` or ``1NNN`` with an errno and its text.  The same commands make up an rc file.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from vdexdp.errors import RequestError
from vdexdp.wirefilter.engine import Engine
from vdexdp.wirefilter.markov import NODES_MAX
from vdexdp.wirefilter.values import LR, RL, Parameter, parse_setting

SCRIPT_DEPTH = 8
"""Nested ``load`` commands at most: a file that loads itself ends."""


class After(Enum):
    """What has to happen after a command."""

    NOTHING = 0
    LOGOUT = 1
    SHUTDOWN = 2


@dataclass(frozen=True)
class Answer:
    """Lines to print, the errno (0: success), and what is next."""

    lines: tuple[str, ...] = ()
    error: int = 0
    after: After = After.NOTHING


class _Refused(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


@dataclass
class Session:
    """One user of the language; ``debug`` above 0 asks for a line at each change of state."""

    debug: int = 0


class Interpreter:
    """Commands for one wire.

    ``clock`` is the engine's.  ``directions`` is 2, or 1 for a wire that only goes from left to right; ``blink`` is the
    socket and the id that ``showinfo`` mentions.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float], directions: int = 2) -> None:
        self.engine = engine
        self.directions = directions
        self.blink: tuple[str, str] | None = None
        self._clock = clock
        self._depth = 0

    def execute(self, line: str, session: Session) -> Answer:
        """Run one line.  Empty lines and comments answer nothing."""
        line = line.strip()
        if not line or line.startswith("#"):
            return Answer()
        for command in _COMMANDS:
            if line.startswith(command.name):
                argument = line[len(command.name) :].strip()
                break
        else:
            return Answer((_closing(errno.ENOSYS),), errno.ENOSYS)
        after, error, data = command.after, 0, []
        try:
            data = command.run(self, argument, session)
        except _Refused as refusal:
            error = refusal.code
        except (RequestError, ValueError):
            error = errno.EINVAL
        except OSError as failure:
            error = failure.errno or errno.EIO
        if command.data:
            data = ["0000 DATA END WITH '.'", *data, "."]
        return Answer((*data, _closing(error)), error, After.NOTHING if error else after)

    def script(self, path: str, session: Session) -> list[tuple[str, Answer]]:
        """Run a file, as an rc file or by ``load``; a bad command does not stop the others.  Raises OSError."""
        if self._depth >= SCRIPT_DEPTH:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        self._depth += 1
        try:
            with open(path, encoding="utf-8", errors="replace") as lines:
                return [(line.strip(), self.execute(line, session)) for line in lines]
        finally:
            self._depth -= 1

    def load(self, argument: str, session: Session) -> list[str]:
        """Run a file; echo the commands in it, but nothing else: the client may not be allowed to read that file."""
        echo = []
        for number, (line, answer) in enumerate(self.script(argument, session), 1):
            if answer.lines:
                shown = f"line {number}" if answer.error == errno.ENOSYS else line
                echo += [f"VDEwf$ ({argument}) {shown}", *answer.lines]
        return echo

    def set(self, parameter: Parameter, text: str) -> None:
        """Set one value from its text.  Raises RequestError."""
        setting = parse_setting(text)
        if setting.node >= len(self.engine.chain.nodes):
            raise RequestError(f'wire value "{text}"', f"there is no Markov node {setting.node}")
        self.engine.chain.nodes[setting.node].set(parameter, setting)

    def _node(self, text: str) -> int:
        """A node's number; the current one if ``text`` is empty."""
        number = int(text) if text else self.engine.chain.current
        if not 0 <= number < len(self.engine.chain.nodes):
            raise _Refused(errno.EINVAL)
        return number

    def _name(self, number: int) -> str:
        return f'"{self.engine.chain.nodes[number].name}"'

    def moved(self, source: int, target: int) -> str:
        """The line that a session with ``debug`` reads when the chain moves."""
        return f"{3800 + target:04d} Node {source} {self._name(source)} -> {target} {self._name(target)}"

    def show(self, argument: str, _session: Session) -> list[str]:
        engine, chain, both = self.engine, self.engine.chain, self.directions == 2
        number = self._node(argument)
        node = chain.nodes[number]
        lines = [f"WireFilter: {'bi' if both else 'mono'}directional"]
        if len(chain.nodes) > 1:
            lines.append(
                f"Node {number} {self._name(number)} (0,..,{len(chain.nodes) - 1}) Markov-time {chain.period * 1000:g}"
            )
        for parameter in Parameter:
            left, right = node.get(parameter, LR), node.get(parameter, RL)
            if parameter is Parameter.MTU:
                shown = (f"{left.low:g}  ", f"{right.low:g}   ")
            else:
                shown = (str(left), str(right))
            row = f"L->R {shown[0]}   R->L {shown[1]}" if both else shown[0].rstrip()
            lines.append(f"{parameter.value:<6} {row}")
        waiting = engine.waiting_bytes
        row = f"L->R {waiting[LR]}      R->L {waiting[RL]}   " if both else str(waiting[LR])
        lines.append(f"Current Delay Queue size:   {row}")
        lines.append(f"Fifoness {'TRUE' if engine.fifo else 'FALSE'}")
        lines.append(f"Waiting packets in delay queues {engine.waiting(LR) + engine.waiting(RL)}")
        if self.blink:
            lines += [f"Blink socket: {self.blink[0]}", f"Blink id:     {self.blink[1]}"]
        return lines

    def edges(self, argument: str, _session: Session) -> list[str]:
        source, chain = self._node(argument), self.engine.chain
        return [
            f"Edge {source:<2d}->{target:<2d} {self._name(source)}->{self._name(target)} weight {weight:g}"
            for target in range(len(chain.nodes))
            if (weight := chain.weight(source, target))
        ]

    def current(self, _argument: str, _session: Session) -> list[str]:
        chain = self.engine.chain
        return [f"Current Markov Node {chain.current} {self._name(chain.current)} (0,..,{len(chain.nodes) - 1})"]

    def fifo(self, argument: str, _session: Session) -> list[str]:
        self.engine.fifo = int(argument) != 0
        return []

    def resize(self, argument: str, _session: Session) -> list[str]:
        count = int(argument)
        if not 0 < count <= NODES_MAX:
            raise _Refused(errno.EINVAL)
        self.engine.chain.resize(count, self._clock())
        return []

    def select(self, argument: str, _session: Session) -> list[str]:
        self.engine.chain.current = self._node(str(int(argument)))
        return []

    def rename(self, argument: str, _session: Session) -> list[str]:
        match = re.fullmatch(r"(\d+)\s*,?(.*)", argument)
        if match is None:
            raise _Refused(errno.EINVAL)
        self.engine.chain.nodes[self._node(match[1])].name = match[2]
        return []

    def period(self, argument: str, _session: Session) -> list[str]:
        milliseconds = float(argument)
        if not 0 < milliseconds < float("inf"):
            raise _Refused(errno.EINVAL)
        self.engine.chain.period = milliseconds / 1000.0
        self.engine.chain.start(self._clock())
        return []

    def edge(self, argument: str, _session: Session) -> list[str]:
        source, target, weight = argument.split(",")
        self.engine.chain.set_edge(self._node(str(int(source))), self._node(str(int(target))), float(weight))
        return []

    def debug(self, argument: str, session: Session) -> list[str]:
        session.debug = int(argument or 0)
        return []


@dataclass(frozen=True)
class _Command:
    name: str
    help: str
    run: Callable[[Interpreter, str, Session], list[str]]
    data: bool = False
    after: After = After.NOTHING
    shown: str = ""
    """How ``help`` writes it, where that is not the name alone; "-" hides a synonym."""


def _setter(name: str, help: str, parameter: Parameter, shown: str = "") -> _Command:
    def run(interpreter: Interpreter, argument: str, _session: Session) -> list[str]:
        interpreter.set(parameter, argument)
        return []

    return _Command(name, help, run, shown=shown)


def _nothing(_interpreter: Interpreter, _argument: str, _session: Session) -> list[str]:
    return []


def _help(_interpreter: Interpreter, _argument: str, _session: Session) -> list[str]:
    shown = [(command.shown or command.name, command.help) for command in _COMMANDS if command.shown != "-"]
    return ["COMMAND      HELP", "------------ ------------", *(f"{name:<12} {text}" for name, text in shown)]


# The first name that the line starts with counts, as in stock.
_COMMANDS = (
    _Command("help", "print a summary of mgmt commands", _help, data=True),
    _Command("load", "load a configuration file", Interpreter.load, data=True),
    _Command("showinfo", "show status and parameter values", Interpreter.show, data=True, shown="showinfo [n]"),
    _setter("loss", "set loss percentage", Parameter.LOSS),
    _setter("lostburst", "mean length of lost packet bursts", Parameter.LOSTBURST),
    _setter("delay", "set delay ms", Parameter.DELAY),
    _setter("dup", "set dup packet percentage", Parameter.DUP),
    _setter("bandwidth", "set channel bandwidth bytes/sec", Parameter.BANDWIDTH),
    _setter("band", "", Parameter.BANDWIDTH, shown="-"),
    _setter("speed", "set interface speed bytes/sec", Parameter.SPEED),
    _setter("noise", "set noise factor bits/Mbyte", Parameter.NOISE),
    _setter("mtu", "set channel MTU (bytes)", Parameter.MTU),
    _setter("chanbufsize", "set channel buffer size (bytes)", Parameter.BUFSIZE),
    _setter("capacity", "", Parameter.BUFSIZE, shown="-"),
    _Command("fifo", "set channel fifoness (0 or 1)", Interpreter.fifo),
    _Command("shutdown", "shut the channel down", _nothing, after=After.SHUTDOWN),
    _Command("logout", "log out from this mgmt session", _nothing, after=After.LOGOUT),
    _Command("markov-numnodes", "markov mode: set number of states", Interpreter.resize, shown="markov-numnodes n"),
    _Command("markov-setnode", "markov mode: set current state", Interpreter.select, shown="markov-setnode n"),
    _Command("markov-name", "markov mode: set state's name", Interpreter.rename, shown="markov-name n,name"),
    _Command("markov-time", "markov mode: transition period", Interpreter.period, shown="markov-time ms"),
    _Command("setedge", "markov mode: set edge weight", Interpreter.edge, shown="setedge n1,n2,w"),
    _Command("showedges", "markov mode: show edge weights", Interpreter.edges, data=True, shown="showedges [n]"),
    _Command("showcurrent", "markov mode: show current state", Interpreter.current, data=True),
    _Command("markov-debug", "markov mode: set debug level", Interpreter.debug, shown="markov-debug [n]"),
)


def _closing(error: int) -> str:
    return f"1{error:03d} {os.strerror(error)}" if error else "1000 Success"
