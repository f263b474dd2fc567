# SPDX-License-Identifier: GPL-2.0-or-later
"""The exception path as the daemon sees it: one tap, the program on it, and the worker behind it.

It exists while there is a LAC.  The tap is non-persistent: it vanishes with the last of its descriptors, which are the
daemon's, the worker's and those in the leases of plugs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Final

from vdexdp.control.abi import K
from vdexdp.control.channel import Body, Channel
from vdexdp.control.dataplane import Link
from vdexdp.control.host import EXCEPTION_TAP, Host, close_fd
from vdexdp.control.worker import spawn
from vdexdp.errors import DaemonError, ProtocolError
from vdexdp.plugins.base import Tunnel
from vdexdp.plugins.tap import open_tap

MTU: Final = 65521
"""The largest that a tap takes: any super-packet's segment and any reassembled datagram fits."""
QUEUE: Final = 4096
"""Packets the kernel keeps for the worker."""
POINT: Final = "exception_ingress"


class ExceptionPath:
    """Open it with :meth:`open`, or :meth:`adopt` it from a lease."""

    def __init__(self, host: Host, tap: int, name: str, ifindex: int, index: int) -> None:
        self.host = host
        self.tap = tap
        self.name = name
        self.ifindex = ifindex
        self.index = index
        self.link: Link | None = None
        self.channel: Channel | None = None
        self.child = 0
        self.stats: Body = {}
        self.restarts = 0

    @classmethod
    def open(cls, host: Host) -> ExceptionPath:
        """Make the tap, attach, start the worker.  Raises HostError, with nothing left behind."""
        with ExitStack() as undo:
            tap, name = open_tap(f"{EXCEPTION_TAP}%d")
            undo.callback(close_fd, tap)
            path = cls(host, tap, name, host.netlink.need(name).index, host.tables.take_port())
            undo.pop_all()
            undo.callback(path.close)
            host.private(name)
            host.netlink.set_link(path.ifindex, mtu=MTU, txqlen=QUEUE)
            host.netlink.set_link(path.ifindex, state="up")
            host.tables.write_port(path.index, ifindex=path.ifindex, kind=K["PORT_EXCEPTION"])
            path._set_ingress()
            path.link = host.attach(path.ifindex, POINT)
            path.start_worker()
            undo.pop_all()
        return path

    @classmethod
    def adopt(cls, host: Host, state: Body, fds: dict[str, int]) -> ExceptionPath:
        """Go on from a lease, taking its descriptors over."""
        path = cls(host, fds.pop("exception:tap"), state["name"], state["ifindex"], state["index"])
        path._set_ingress()
        path.link = host.adopt_link(fds.pop("exception:link", None), path.ifindex, POINT)
        worker = fds.pop("exception:worker", None)
        if worker is not None:
            path.channel = Channel(socket.socket(fileno=worker))
        return path

    def _set_ingress(self) -> None:
        """Tell the programs what the tap is: counters of its own, and a way back to the port that a frame came from."""
        self.host.tables.set_ingress(self.ifindex, self.index, uplink=True)
        self.host.tables.set_ingress(self.ifindex, K["INGRESS_BOUNCED"])

    def start_worker(self) -> None:
        """Fork a worker; it knows no LAC yet."""
        self.stop_worker()
        self.child, sock = spawn(self.tap)
        self.channel = Channel(sock)

    def stop_worker(self) -> None:
        """Let go of the worker; it ends when no plug holds its control socket any more."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        self.reap()

    def reap(self) -> None:
        """Collect a worker of ours that has ended."""
        if self.child:
            with contextlib.suppress(ChildProcessError):
                for _ in range(50):
                    if os.waitpid(self.child, os.WNOHANG)[0]:
                        self.child = 0
                        return
                    time.sleep(0.002)

    def close(self) -> None:
        """Input first, then the worker, then the tap."""
        if self.link is not None:
            self.link.close()
        self.tell("quit")  # a plug that is about to leave may still hold a copy of the control socket
        self.stop_worker()
        for uplink in (True, False):
            self.host.tables.drop_ingress(self.ifindex, uplink=uplink)
        self.host.tables.clear_port(self.index)
        close_fd(self.tap)
        self.tap = -1

    # The worker

    def tell(self, op: str, fds: Iterable[int] = (), **parts: Any) -> bool:
        """Send a command; False where the worker is gone or does not listen."""
        if self.channel is None:
            return False
        try:
            self.channel.send({"op": op, **parts}, list(fds))
        except (DaemonError, BlockingIOError):
            return False
        return True

    def add(self, lac: int, spec: Tunnel, src_port: int, uplink: int, local: str, sockets: tuple[int, int]) -> None:
        """Hand a LAC's sockets to the worker, replacing what it knew of that LAC."""
        node = {key: getattr(spec, key) for key in ("kind", "family", "group", "port", "vni", "ttl")}
        self.tell("add", sockets, lac=lac, node=node | {"src_port": src_port, "uplink": uplink, "local": local})

    def events(self) -> tuple[list[Body], bool]:
        """What the worker said since the last call, and whether it is still there."""
        found: list[Body] = []
        while self.channel is not None:
            try:
                message = self.channel.recv()
            except BlockingIOError:
                return found, True
            except ProtocolError:
                continue
            if message is None:
                return found, False
            message.close()
            if message.body.get("event") == "stats":
                self.stats = message.body
            else:
                found.append(message.body)
        return found, False

    def ask_stats(self, timeout: float = 0.2) -> list[Body]:
        """Refresh ``stats``, waiting at most ``timeout`` seconds for the worker.

        Returns the events that came meanwhile.
        """
        self.stats = {}
        found: list[Body] = []
        if not self.tell("stats") or self.channel is None:
            return found
        end = time.monotonic() + timeout
        while not self.stats and (left := end - time.monotonic()) > 0:
            if not self.channel.wait(left):
                break
            more, alive = self.events()
            found.extend(more)
            if not alive:
                break
        return found

    # The lease

    def state(self) -> Body:
        return {"name": self.name, "ifindex": self.ifindex, "index": self.index}

    def fds(self) -> dict[str, int]:
        found = {"exception:tap": self.tap}
        if self.link is not None and self.link.fd >= 0:
            found["exception:link"] = self.link.fd
        if self.channel is not None:
            found["exception:worker"] = self.channel.fileno()
        return found
