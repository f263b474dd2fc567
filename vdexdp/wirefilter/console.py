# SPDX-License-Identifier: GPL-2.0-or-later
"""The management socket of a wire, and the terminal that may be its console.

A client of the socket (vdeterm, unixcmd, socat) reads a banner and a prompt, writes commands, and reads answers, each
followed by a prompt.  What comes with one read is complete, as in stock: vdeterm sends no line ends.  A client that
does not read its answers is thrown out; nobody is waited for.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import sys

from vdexdp import __version__
from vdexdp.errors import HangUp, HostError
from vdexdp.wirefilter.commands import After, Interpreter, Session

SESSIONS_MAX = 16
READ_MAX = 4096
"""Bytes taken at a time."""

BANNER = f"\nVDE wirefilter V.{__version__} (vdexdp)\n"
PROMPT = "\nVDEwf$ "


class _Client(Session):
    """Somebody at the other end of ``source`` and ``sink``."""

    def __init__(self, source: int, sink: int, connection: socket.socket | None) -> None:
        super().__init__()
        self.source = source
        self.sink = sink
        self.connection = connection

    def say(self, text: str) -> bool:
        """Whether all of it could be said at once."""
        data = text.encode()
        try:
            return os.write(self.sink, data) == len(data)
        except OSError:
            return False


class Console:
    """All who manage one wire.  Its descriptors are in ``poller``; ``serve`` is told of those that are ready."""

    def __init__(self, interpreter: Interpreter, poller: select.epoll) -> None:
        self._interpreter = interpreter
        self._poller = poller
        self._listener: socket.socket | None = None
        self._path = ""
        self._clients: dict[int, _Client] = {}

    def listen(self, path: str, mode: int) -> None:
        """Make the management socket, in place of a dead one.  Raises HostError."""
        self._listener = listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _remove_dead(path)
            before = os.umask(0o777 & ~mode)
            try:
                listener.bind(path)
            finally:
                os.umask(before)
            listener.listen(SESSIONS_MAX)
        except OSError as error:
            listener.close()
            self._listener = None
            hint = "another process uses this socket; choose another path" if error.errno == errno.EADDRINUSE else ""
            raise HostError.from_oserror(path, error, hint) from error
        self._path = path
        self._poller.register(listener, select.EPOLLIN)

    def attach(self, source: int, sink: int) -> None:
        """Take commands from two descriptors, a terminal's for instance; their end is the end of the wire."""
        try:
            self._poller.register(source, select.EPOLLIN)
        except PermissionError:  # a regular file, always readable and soon at its end; not a console
            return
        self._clients[source] = client = _Client(source, sink, None)
        client.say(PROMPT)

    def serve(self, fd: int) -> None:
        """Handle a ready descriptor.  Raises HangUp when the wire is to be shut down."""
        if self._listener is not None and fd == self._listener.fileno():
            self._accept(self._listener)
        elif fd in self._clients:
            self._read(self._clients[fd])

    def trace(self, line: str) -> None:
        """Tell those who asked with ``markov-debug``."""
        for client in [client for client in self._clients.values() if client.debug > 0]:
            self._say(client, line + "\n")

    def close(self) -> None:
        for client in list(self._clients.values()):
            self._drop(client)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            try:
                os.unlink(self._path)
            except OSError:
                pass

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        if len(self._clients) >= SESSIONS_MAX:
            connection.close()
            return
        connection.setblocking(False)
        fd = connection.fileno()
        self._clients[fd] = client = _Client(fd, fd, connection)
        self._poller.register(fd, select.EPOLLIN)
        self._say(client, BANNER + PROMPT)

    def _read(self, client: _Client) -> None:
        try:
            data = os.read(client.source, READ_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            if client.connection is None:
                raise HangUp("the console was closed")
            return
        for line in data.decode(errors="replace").removesuffix("\n").split("\n"):
            answer = self._interpreter.execute(line, client)
            if answer.after is After.SHUTDOWN:
                client.say("\n".join(answer.lines) + "\n")
                raise HangUp("shut down by a management command")
            if not self._say(client, "".join(f"{text}\n" for text in answer.lines) + PROMPT):
                return
            if answer.after is After.LOGOUT:
                self._drop(client)
                return

    def _say(self, client: _Client, text: str) -> bool:
        said = client.say(text)
        if not said:
            self._drop(client)
        return said

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.source, None) is None:
            return
        self._poller.unregister(client.source)
        if client.connection is not None:
            client.connection.close()


def _remove_dead(path: str) -> None:
    """Remove a socket nobody listens on.  Whatever else is there makes the bind fail."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def is_console(fd: int) -> bool:
    """Whether somebody may type at ``fd``: a terminal, a pipe or a socket, but not /dev/null or a file."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return os.isatty(fd) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def warn(text: str) -> None:
    """A line on stderr for what does not end the wire."""
    print(f"wirefilter: {text}", file=sys.stderr)
