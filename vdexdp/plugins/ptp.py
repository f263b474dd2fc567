# SPDX-License-Identifier: GPL-2.0-or-later
"""``ptp://path``: two ends and a UNIX socket between them, either of which may start first.

The wire is a SOCK_SEQPACKET, one frame in a packet.  Who finds nobody on the path binds it and listens; who finds a
listener connects and waits up to two seconds for one byte: 0 for welcome, or an errno, which is EISCONN when the
listener has its peer already.  An end without a peer drops and counts what it is given.  When the peer goes, a listener
waits for the next one and a connector starts anew: it connects to whoever listens by then, or listens itself.

Older libvdeplugs, Debian's among them, speak another wire on the same path, see ptpdatagram.  Who comes second joins in
whatever it finds.  Who comes first must choose, and takes the one of the libvdeplug that is installed: the other
end is on the same host.  (docs/decisions/010-ptp-two-wires.md tells why.)

Nothing here waits after ``open``, which returns when the first attempt is decided; what fails later is tried again
every second, and said in ``fault``.

Two races are closed that libvdeplug's module has.  A socket file whose owner was killed refuses connections, and so
does one that was bound and not yet listened on: so it counts as stale only after it has refused for a while, and only
then is removed.  And should two ends remove it at once, one of them listens on a file that the other has deleted: so an
end without a peer looks every second whether the path still leads to it, and starts anew if not.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vdexdp.errors import HangUp, HostError, PrivilegeError, RequestError, VnlError
from vdexdp.plugins.base import Batch, NoKernelEnd, OpenContext, Parsed, Plugin, RecvOne, SendOne, Stream
from vdexdp.plugins.mmsg import FATAL, Reader, Writer
from vdexdp.plugins.ptpdatagram import LOOK, DatagramEnd, bind, spoken_here

ANSWER_WAIT = 2.0
"""Seconds that a connector waits for the listener's byte."""

RETRY = 1.0
"""Seconds between attempts, and between a listener's looks at its path."""

STALE_AFTER = 0.2
"""Seconds for which a socket file has to refuse connections to be taken for a dead one."""

AGAIN = 0.02
"""Seconds between attempts while two ends start at the same time."""

PATH_MAX = 107
"""Bytes that fit into sockaddr_un with the NUL behind them."""

SEND_BUFFER = 1 << 20
"""Bytes asked for; the kernel gives at most net.core.wmem_max.  Room for a burst: what does not fit is lost."""

_GONE = FATAL | {errno.ECONNREFUSED, errno.ENOENT, errno.EPERM, errno.EACCES, errno.EPROTOTYPE}


@dataclass(frozen=True)
class PtpSpec:
    path: str


class PtpStream(Stream):
    """At any time: listening (with or without a peer), connected, awaiting the listener's byte, or between attempts."""

    def __init__(self, path: str, context: OpenContext) -> None:
        super().__init__()
        self._path = path
        self._context = context
        self._listener: socket.socket | None = None
        self._inode = (0, 0)  # device and inode of the path as we bound it
        self._asking: socket.socket | None = None  # connected, the listener's byte has not come yet
        self._peer: socket.socket | None = None
        self._datagram: DatagramEnd | None = None
        self._reader: Reader | None = None
        self._writer: Writer | None = None
        self._due: float | None = None  # monotonic seconds of the next look or attempt, or of the end of asking
        self._stale: tuple[int, float] | None = None  # a name's inode, and since when it has refused
        self._fault = ""
        self._closed = False
        try:
            self._attempt()
            self._decide()
        except BaseException:
            self.close()
            raise

    def readers(self) -> Sequence[int]:
        sockets = [s for s in (self._listener, self._asking, self._peer) if s is not None]
        if self._datagram is not None:
            sockets.append(self._datagram.socket)
        return [s.fileno() for s in sockets]

    def timeout(self) -> float | None:
        return None if self._due is None else max(0.0, self._due - time.monotonic())

    def recv(self, batch: Batch) -> None:
        if self._closed or (self._receive(batch) and (self._due is None or time.monotonic() < self._due)):
            return
        try:
            self._advance()
        except HostError as error:
            self._fault = f"{error.subject}: {error.cause}"
            self._due = time.monotonic() + RETRY
        self._receive(batch)

    def _receive(self, batch: Batch) -> bool:
        """Whether the peer had something.  Only then may everything else wait, until it is due."""
        if self._reader is None:
            return False
        try:
            got = self._reader.recv(batch)
        except (HangUp, OSError):
            self._leave()
            return False
        if got and self._datagram is not None and not self._datagram.alive:
            self._datagram.look()
        return got > 0

    def send(self, batch: Batch, start: int = 0) -> int:
        if self._datagram is not None and not self._datagram.alive:
            self._datagram.look()
        if self._writer is not None and self._has_peer:
            target = self._datagram and self._datagram.target
            try:
                return self._writer.send(batch, start, [target] * (len(batch) - start) if target else ())
            except OSError:
                self._leave()
        self.drops["no-peer"] += len(batch) - start
        return len(batch) - start

    def singles_in(self) -> RecvOne | None:
        return None if self._reader is None else self._reader.recv_one

    def singles_out(self) -> SendOne | None:
        if self._writer is None or not self._has_peer:
            return None
        if self._datagram is not None and self._datagram.target is not None:
            return self._datagram.send_one
        return self._writer.send_one

    def fault(self) -> str:
        return self._fault or ("" if self._has_peer else "no peer yet")

    @property
    def _has_peer(self) -> bool:
        return self._peer is not None or (self._datagram is not None and self._datagram.alive)

    def close(self) -> None:
        self._closed = True
        self._due = None
        self._unlisten()
        self._leave()
        self._close_asking()
        self._close_datagram()

    def _decide(self) -> None:
        """Wait until the first attempt has come to something: a peer, a name of our own, or an error."""
        while self._peer is None and self._listener is None and self._datagram is None:
            poll = select.poll()
            for fd in self.readers():
                poll.register(fd, select.POLLIN)
            due = self.timeout()
            poll.poll(None if due is None else due * 1000)
            self._advance()

    def _advance(self) -> None:
        """One step of everything but frames.  Raises HostError where an attempt failed."""
        if self._listener is not None:
            self._accept(self._listener)
        if self._asking is not None:
            self._hear(self._asking)
        if self._due is None or time.monotonic() < self._due:
            return
        self._due = None
        if self._asking is not None:
            self._close_asking()
            raise HostError(self._path, f"who listens there has not answered for {ANSWER_WAIT:g} s", "is it stopped?")
        if self._datagram is not None and not self._datagram.look():
            self._close_datagram()
        if self._listener is not None and self._peer is None and not self._owns_path():
            self._unlisten()
        if self._listener is None and self._datagram is None:
            self._attempt()
        elif self._peer is None:
            self._due = time.monotonic() + (RETRY if self._datagram is None else LOOK)

    def _attempt(self) -> None:
        """Connect, or become the listener.  Raises HostError."""
        s = _socket()
        try:
            s.connect(self._path)
        except OSError as error:
            s.close()
            if error.errno == errno.ECONNREFUSED:
                self._refused()
                return
            self._stale = None
            if error.errno == errno.EPROTOTYPE:
                self._bind_datagram(second=True)
            elif error.errno != errno.ENOENT:
                raise self._error(error) from error
            elif spoken_here():
                self._bind_datagram(second=False)
            else:
                self._listen()
        else:
            self._stale = None
            self._asking = s
            self._due = time.monotonic() + ANSWER_WAIT

    def _refused(self) -> None:
        """Nobody listens at the path.  Remove a socket for which that is so for a while.  Raises HostError."""
        now = time.monotonic()
        try:
            status = os.stat(self._path)
            if not stat.S_ISSOCK(status.st_mode):
                raise HostError(self._path, "exists and is not a socket", "choose another path, or remove it")
            if self._stale is None or self._stale[0] != status.st_ino:
                self._stale = (status.st_ino, now)
            elif now - self._stale[1] >= STALE_AFTER:
                os.unlink(self._path)
                self._stale = None
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._error(error) from error
        self._due = time.monotonic() + AGAIN

    def _listen(self) -> None:
        s = _socket()
        try:
            bind(s, self._path, self._context)
            s.listen(8)
            status = os.stat(self._path)
        except OSError as error:
            s.close()
            self._not_bound(error)
            return
        except RequestError:
            s.close()
            raise
        self._inode = (status.st_dev, status.st_ino)
        self._listener = s
        self._due = time.monotonic() + RETRY

    def _bind_datagram(self, second: bool) -> None:
        try:
            end = DatagramEnd(self._path, second, self._context)
        except OSError as error:
            self._not_bound(error)
            return
        if not end.look():
            end.close()
            raise HostError(self._path, "is a socket of another kind", "choose another path")
        self._datagram = end
        self._equip(end.socket)
        self._fault = ""
        self._due = time.monotonic() + LOOK

    def _not_bound(self, error: OSError) -> None:
        if os.path.islink(self._path) and not os.path.exists(self._path):
            raise HostError(self._path, "is a symbolic link to nothing", "remove it") from error
        somebody_was_quicker = error.errno == errno.EADDRINUSE or (
            error.errno == errno.ENOENT and os.path.isdir(os.path.dirname(self._path) or ".")
        )
        if not somebody_was_quicker:
            raise self._error(error) from error
        self._due = time.monotonic() + AGAIN

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                s, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                raise self._error(error) from error
            taken = self._peer is not None
            try:
                s.send(bytes([errno.EISCONN if taken else 0]), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                taken = True  # gone already
            if taken:
                s.close()
            else:
                self._meet(s)

    def _hear(self, s: socket.socket) -> None:
        """The listener's byte, if it is there."""
        try:
            answer = s.recv(1)
        except BlockingIOError:
            return
        except OSError as error:
            self._close_asking()
            raise self._error(error) from error
        if answer == b"\0":
            self._asking = None
            self._meet(s)
            return
        self._close_asking()
        if not answer:
            raise HostError(self._path, "who listened there has hung up without an answer")
        if answer[0] == errno.EISCONN:
            raise HostError(self._path, "already joins two ends", "give this pair of ends a path of its own")
        raise HostError(self._path, f"who listens there refuses: {os.strerror(answer[0])}")

    def _meet(self, s: socket.socket) -> None:
        s.setblocking(False)
        self._peer = s
        self._equip(s)
        self._fault = ""
        self._due = None

    def _equip(self, s: socket.socket) -> None:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._reader = Reader(s.fileno(), self.drops, sequenced=s.type == socket.SOCK_SEQPACKET)
        self._writer = Writer(s.fileno(), self.drops, fatal=_GONE)

    def _leave(self) -> None:
        """The peer has gone."""
        if self._datagram is not None:
            self._datagram.alive = False
            self._datagram.part()
        if self._peer is None:
            return
        self._peer.close()
        self._peer = self._reader = self._writer = None
        if not self._closed:
            self._due = time.monotonic() + (RETRY if self._listener is not None else 0.0)

    def _close_asking(self) -> None:
        if self._asking is not None:
            self._asking.close()
            self._asking = None

    def _close_datagram(self) -> None:
        if self._datagram is not None:
            self._datagram.close()
            self._datagram = self._reader = self._writer = None

    def _unlisten(self) -> None:
        if self._listener is None:
            return
        if self._owns_path():
            try:
                os.unlink(self._path)
            except OSError:
                pass
        self._listener.close()
        self._listener = None

    def _owns_path(self) -> bool:
        try:
            status = os.stat(self._path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._inode

    def _error(self, error: OSError) -> HostError:
        if error.errno in (errno.EACCES, errno.EPERM):
            return PrivilegeError(self._path, "permission denied", "see the modes of the socket and of its directory")
        if error.errno == errno.EAGAIN:
            return HostError(self._path, "who listens there does not accept", "is it stopped?")
        return HostError.from_oserror(self._path, error)


def _socket() -> socket.socket:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.setblocking(False)
    return s


class PtpPlugin(Plugin):
    scheme = "ptp"
    grammar = "raw"
    summary = "one other end, through a UNIX socket; either may start first"
    address = "path"
    example = "ptp:///run/user/1000/cable"

    def parse(self, parsed: Parsed) -> PtpSpec:
        path = parsed.address
        if not path:
            raise VnlError(parsed.vnl, "no path", f"write for instance {self.example}")
        if "\0" in path or len(os.fsencode(path)) > PATH_MAX:
            raise VnlError(parsed.vnl, f"no path of a UNIX socket: over {PATH_MAX} bytes, or a NUL in it")
        return PtpSpec(path)

    def open(self, spec: PtpSpec, context: OpenContext) -> PtpStream:
        return PtpStream(spec.path, context)

    def kernel_end(self, spec: PtpSpec) -> NoKernelEnd:
        return NoKernelEnd("ptp:// is a UNIX socket")
