# SPDX-License-Identifier: GPL-2.0-or-later
"""``vde://[directory][[port]]``: a client of vde_switch, of stock's and of our own hub, switch, multi and bonding.

The session is a handshake over the stream socket ``directory/ctl`` (see ``vdexdp.wire.control3``), then frames over a
pair of datagram sockets that are connected to each other.  The stream stays open and silent; its end is the end of
the session.

The client's datagram socket needs a name only until the switch has connected to it, so the name goes when the switch
has answered.  A client that is killed in between leaves it behind; the next client that finds such a name in the same
directory removes it.  The switch may run as another user, who must be able to write to that socket: where neither the
mode nor the group was chosen by the user, stock's rule opens it to the switch's group, or to everybody, for that
moment.

Two datagram sockets that are connected to each other know only one limit, the sender's SO_SNDBUF.  It is raised,
since what does not fit is lost.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vdexdp.errors import HangUp, HostError, PrivilegeError, ProtocolError, RequestError
from vdexdp.plugins.base import (
    Batch,
    Member,
    NoKernelEnd,
    OpenContext,
    Option,
    Parsed,
    Plugin,
    RecvOne,
    SendOne,
    Stream,
)
from vdexdp.plugins.mmsg import Reader, Writer
from vdexdp.plugins.sockdir import CONTROL, SUN_PATH_MAX, chosen_group, optional_mode, sweep, unlink
from vdexdp.users import user_name
from vdexdp.vnl import group
from vdexdp.wire.control3 import SOCKADDR_SIZE, Request, decode_reply, encode_request

FALLBACKS = ("/var/run/vde.ctl", "/tmp/vde.ctl")
"""Where a switch is looked for when the VNL names none."""

NAME_DIRECTORIES = ("/var/run", "/var/tmp", "/tmp")
"""Where the client's socket is named when it may not be in the switch's directory."""

MODE = 0o700

ANSWER_TIMEOUT = 5.0
"""Seconds that a switch has for the whole handshake."""

SEND_BUFFER = 1 << 19
"""Bytes asked for; the kernel doubles them, and gives at most net.core.wmem_max without privilege."""

_DESCRIPTION_MAX = 127  # stock keeps the last of its 128 bytes for a NUL

_PEER_GONE = frozenset({errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN, errno.EPIPE})


@dataclass(frozen=True)
class VdeSpec:
    """``path`` is "" for FALLBACKS; ``portgroup`` a port number, a port group's name or ""."""

    path: str
    portgroup: str = ""
    gid: int | None = None
    mode: int | None = None


class VdeStream(Stream):
    """One session with a switch.  Raises RequestError, PrivilegeError and HostError."""

    def __init__(self, spec: VdeSpec, context: OpenContext) -> None:
        super().__init__()
        deadline = time.monotonic() + ANSWER_TIMEOUT
        portgroup = spec.portgroup or ("" if context.port is None else str(context.port))
        self._control, directory, address, port = _reach(spec.path, portgroup, deadline)
        self._subject = f"vde://{directory}"
        self._data = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name = _name(self._data, directory)
            try:
                _permit(name, address, spec, context)
                request = encode_request(Request(name, _description(context.description), port))
                self._data.connect(_ask(self._control, directory, request, port, deadline))
            except OSError as error:
                raise HostError.from_oserror(self._subject, error) from error
            finally:
                unlink(name)
            self._control.setblocking(False)
            self._data.setblocking(False)
            self._data.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        except BaseException:
            self.close()
            raise
        self._reader = Reader(self._data.fileno(), self.drops)
        self._writer = Writer(self._data.fileno(), self.drops, fatal=frozenset())

    def readers(self) -> Sequence[int]:
        return (self._data.fileno(), self._control.fileno())

    def recv(self, batch: Batch) -> None:
        try:
            count = self._reader.recv(batch)
        except OSError as error:
            if error.errno not in _PEER_GONE:
                raise HostError.from_oserror(self._subject, error) from error
            count = 0
        # The stream has something to say only when it ends, and the frames that came before come first.
        if not count:
            self._attend()

    def send(self, batch: Batch, start: int = 0) -> int:
        return self._writer.send(batch, start)

    def singles_in(self) -> RecvOne:
        return self._reader.recv_one

    def singles_out(self) -> SendOne:
        return self._writer.send_one

    def close(self) -> None:
        self._data.close()
        self._control.close()

    def _attend(self) -> None:
        try:
            if not self._control.recv(4096):
                raise HangUp("the switch has closed the port")
        except BlockingIOError:
            pass
        except OSError as error:
            raise HangUp(error.strerror) from error


class VdePlugin(Plugin):
    scheme = "vde"
    grammar = "bracket"
    summary = "a port of a running VDE switch"
    path = "user; an interface's or a network's, into a node of ours: kernel"
    address = "directory"
    example = "vde:///tmp/myswitch[3]"
    options = (
        Option("", "port number (0 is the management port) or port group", "any free port", alias="portgroup"),
        Option("port", "the same", alias="portgroup"),
        Option("portgroup", "the same", alias="portgroup"),
        Option("group", "group of the data socket", "the switch's, if it runs as another user"),
        Option("mode", "octal permissions of the data socket", "0700"),
    )

    def parse(self, parsed: Parsed) -> VdeSpec:
        portgroup = parsed.options.get("portgroup", "")
        if "/" in portgroup:
            raise parsed.error("portgroup", "contains a slash", "give a number or a name")
        return VdeSpec(parsed.address, portgroup, group(parsed, "group"), optional_mode(parsed, "mode"))

    def open(self, spec: VdeSpec, context: OpenContext) -> VdeStream:
        return VdeStream(spec, context)

    def kernel_end(self, spec: VdeSpec) -> NoKernelEnd:
        reason = "the frames of a vde switch travel through UNIX sockets"
        return NoKernelEnd(reason) if spec.portgroup else Member(reason, spec.path)


def visit(path: str) -> socket.socket:
    """A connection to the switch at ``path`` ("" for FALLBACKS) that asks for nothing.  Raises HostError."""
    return _reach(path, "", time.monotonic() + ANSWER_TIMEOUT)[0]


def _description(text: str) -> str:
    full = f"{text} user={user_name(os.geteuid())} pid={os.getpid()}"
    if client := os.environ.get("SSH_CLIENT"):
        full += f" SSH={client.partition(' ')[0]}"
    return os.fsdecode(os.fsencode(full)[:_DESCRIPTION_MAX])


def _reach(path: str, portgroup: str, deadline: float) -> tuple[socket.socket, str, str, int | None]:
    """Connect to the switch.  The answer: the stream, the switch's directory, the socket connected to, the port to
    ask for.
    """
    if path:
        try:
            directories: Sequence[str] = (os.path.realpath(path, strict=True),)
        except OSError as error:
            raise _no_switch(path, error) from error
    else:
        directories = FALLBACKS
    number = int(portgroup) if portgroup.isdecimal() else None
    failure: HostError | None = None
    for directory in directories:
        names = [(portgroup, None), (CONTROL, number)] if portgroup else [(CONTROL, None)]
        for name, port in names:
            address = os.path.join(directory, name)
            try:
                return _connect(address, deadline), directory, address, port
            except OSError as error:
                failure = _no_switch(directory, error)
    assert failure is not None
    if not path:
        raise HostError("vde://", f"no switch at {' or '.join(FALLBACKS)}", "name one: vde://DIRECTORY") from failure
    raise failure


def _connect(address: str, deadline: float) -> socket.socket:
    if len(os.fsencode(address)) > SUN_PATH_MAX:
        raise RequestError(address, "too long for the name of a socket", f"at most {SUN_PATH_MAX} bytes")
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(max(deadline - time.monotonic(), 0.01))
        stream.connect(address)
    except BaseException:
        stream.close()
        raise
    return stream


def _no_switch(path: str, error: OSError) -> HostError:
    subject = f"vde://{path}"
    match error.errno:
        case errno.EACCES:
            return PrivilegeError(subject, "no permission", "the switch's mode and group decide who may connect")
        case errno.ENOENT | errno.ENOTDIR:
            return HostError(
                subject, "no switch there", f"start one, for instance: vdexdp vde_plug null:// switch://{path}"
            )
        case errno.ECONNREFUSED:
            return HostError(subject, "nobody serves this switch any more", "start it again")
    if isinstance(error, TimeoutError | BlockingIOError):
        return HostError(subject, "the switch takes no new connections", "it hangs, or too many clients are waiting")
    return HostError.from_oserror(subject, error)


def _name(data: socket.socket, directory: str) -> str:
    """Bind the client's socket under a free name, preferably in the switch's directory."""
    places = [os.path.join(directory, ".")] + [os.path.join(place, "vde.") for place in NAME_DIRECTORIES]
    last = OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    os.fchmod(data.fileno(), MODE)  # what the name is created with
    for place in places:
        prefix = f"{place}{os.getpid():05d}-"
        sweep(os.path.dirname(place), os.path.basename(place))
        number = 0
        while len(os.fsencode(prefix)) + 5 <= SUN_PATH_MAX:
            name = f"{prefix}{number:05d}"
            try:
                data.bind(name)
                return name
            except OSError as error:
                last = error
                if error.errno != errno.EADDRINUSE:
                    break
                number += 1
    raise HostError.from_oserror(f"vde://{directory}", last, "the data socket can't be named anywhere")


def _permit(name: str, address: str, spec: VdeSpec, context: OpenContext) -> None:
    """Let the switch connect to the socket ``name``: stock's rule."""
    mode = next(value for value in (spec.mode, context.mode, MODE) if value is not None)
    gid = chosen_group(spec.gid, context)
    if gid is not None:
        os.chown(name, -1, gid)
    elif not mode & 0o077:
        switch = os.stat(address)
        if switch.st_uid not in (0, os.geteuid()):
            try:
                os.chown(name, -1, switch.st_gid)
                mode |= 0o070
            except PermissionError:
                mode |= 0o077
    os.chmod(name, mode)


def _ask(control: socket.socket, directory: str, request: bytes, port: int | None, deadline: float) -> str:
    """Send the request; return the path of the switch's data socket."""
    subject = f"vde://{directory}"
    answer = b""
    try:
        control.sendall(request)
        while (path := decode_reply(answer)) is None:
            control.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = control.recv(SOCKADDR_SIZE - len(answer))
            if not piece:
                raise HostError(subject, "the switch refused the port", "it is taken, or the switch has no more")
            answer += piece
    except TimeoutError:
        raise HostError(subject, f"no answer from the switch within {ANSWER_TIMEOUT:g} s", _why_silent(port)) from None
    except ConnectionError as error:
        raise HostError(subject, "the switch refused the port", "it is taken, or the switch has no more") from error
    if not path:
        raise ProtocolError(subject, "the switch answered with an unnamed data socket")
    return path


def _why_silent(port: int | None) -> str:
    if port == 0:
        return "stock's netnodes never answer a request for port 0; leave the port out"
    if port:
        return f"vde_switch is silent where it can't give a port: {port} may be taken or too high"
    return "it hangs, or has no free port"
