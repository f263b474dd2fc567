# SPDX-License-Identifier: GPL-2.0-or-later
"""A full screen that is redrawn, and keys that come one by one; whatever ends it, the terminal is as before.

The alternate screen and the hidden cursor are rich's; keys need the terminal's line editing off, while Ctrl-C and
Ctrl-Z stay signals.  Only SIGKILL leaves a terminal for ``reset`` to mend.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import termios
import tty
from types import TracebackType
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.control import Control
from rich.screen import Screen as Filled

from vdexdp.errors import HangUp

_KEY: Final = re.compile(rb"\x1b\[[0-9;]*[@-~]|\x1bO.|[^\x1b]|\x1b", re.DOTALL)
_NAMES: Final = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
}


class Screen:
    """``with Screen(console)``; then ``draw``, and ``pressed`` when ``fileno`` is readable."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
        self._modes: list[Any] | None = None

    def __enter__(self) -> Screen:
        if self._keyboard >= 0 and _foreground(self._keyboard):
            self._modes = termios.tcgetattr(self._keyboard)
            tty.setcbreak(self._keyboard)
        self.console.set_alt_screen(True)
        self.console.show_cursor(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        try:
            self.console.show_cursor(True)
            self.console.set_alt_screen(False)
        except OSError:  # the terminal is gone
            pass
        if self._modes is not None:
            modes, self._modes = self._modes, None
            try:
                termios.tcsetattr(self._keyboard, termios.TCSADRAIN, modes)
            except termios.error:
                pass

    def fileno(self) -> int:
        """The descriptor that keys come from; -1 where there are none."""
        return self._keyboard if self._modes is not None else -1

    def pressed(self) -> list[str]:
        """What was pressed: characters, and "up", "down", "page up", "page down".  Raises HangUp."""
        try:
            data = os.read(self._keyboard, 256)
        except OSError:
            data = b""
        if not data:
            raise HangUp("the terminal is gone")
        found = _KEY.findall(data)
        return [_NAMES.get(key, chr(key[0])) for key in found if key in _NAMES or len(key) == 1]

    def draw(self, content: RenderableType) -> None:
        """Show ``content``, cut at the size that the terminal has now."""
        with self.console:
            self.console.control(Control.home())
            self.console.print(Filled(content), end="")

    def suspend(self) -> None:
        """What Ctrl-Z asks for: the shell has its terminal until it continues us."""
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.__enter__()


def _foreground(terminal: int) -> bool:
    """Whether reading would not stop this process: so it does where the terminal is another job's."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # not our controlling terminal
        return True
