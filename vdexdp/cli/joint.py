# SPDX-License-Identifier: GPL-2.0-or-later
"""Two ends joined, over whichever path they can take, until somebody hangs up.

What the path is, is decided before anything is touched (``vdexdp.control.path``).  Without ``--accel require``, a
daemon that can't be had or a kernel that can't do it is no error: the cable runs in userspace, and the line that the
user sees says why.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from signal import SIGUSR1
from types import TracebackType
from typing import TYPE_CHECKING, Literal, cast

from vdexdp.control.path import Plan, check, check_uplink, plan
from vdexdp.errors import HangUp, HostError, KernelPathError, PrivilegeError
from vdexdp.plugins.base import Inside, Member, Netdev, Node, NoKernelEnd, OpenContext, Stream
from vdexdp.plugins.registry import End
from vdexdp.signals import received
from vdexdp.users import user_name

if TYPE_CHECKING:
    import socket

    from vdexdp.cable import Cable, Ending
    from vdexdp.control.channel import Channel
    from vdexdp.control.client import Plug
    from vdexdp.control.protocol import End as WireEnd
    from vdexdp.plugins.netnode import NetnodeStream
    from vdexdp.wire.dot1q import Mapper

Accel = Literal["auto", "require", "off"]

Wrapper = Callable[[Stream], Stream]


class Joint:
    """A cable between two ends.

    ``open`` builds it, ``run`` keeps it until it ends, ``close`` unwinds it; a ``with`` block opens and closes.
    ``wrap`` may put something around the userspace stream of the second end.
    """

    def __init__(
        self,
        ends: tuple[End, End],
        contexts: tuple[OpenContext, OpenContext],
        accel: Accel = "auto",
        wrap: Wrapper | None = None,
    ) -> None:
        self.ends = ends
        self.contexts = contexts
        self.accel = accel
        self.path = ""
        """Which way the frames go, and why not a faster one; for the user."""
        self._wrap = wrap
        self._taps: dict[int, tuple[int, str]] = {}
        self._vlans: dict[int, tuple[Mapper, ...]] = {}
        self._plug: Plug | None = None
        self._channel: Channel | None = None
        self._cable: Cable | None = None
        self._nodes: dict[int, NetnodeStream] = {}
        self._bridge_at: int | None = None
        self._watched = -1
        self._hung_up = False
        self._opened: dict[int, Stream] = {}

    def __enter__(self) -> Joint:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Raises RequestError and HostError, with nothing left behind."""
        try:
            check(*self.ends)
            if self.accel == "off":
                self._open_user("--accel off")
                return
            wanted = plan(*self.ends)
            if self.accel == "require" and wanted.way not in ("kernel", "node"):
                raise KernelPathError(" ".join(end.vnl for end in self.ends), f"runs in userspace: {wanted.why}")
            if wanted.way == "bridge" and any(isinstance(end, Node) for end in wanted.ends):
                self._come()
            while wanted.way != "user":
                for index, kernel in enumerate(wanted.ends):
                    if isinstance(kernel, NoKernelEnd) and wanted.way == "bridge":
                        self._stream(index)
                try:
                    self._open_kernel(wanted)
                    return
                except HostError as error:
                    if self.accel == "require":
                        raise
                    self._unplug()
                    wanted = wanted.instead(str(error))
            self._open_user(wanted.why)
        except BaseException:
            self.close()
            raise

    def run(self, signals: int) -> str:
        """Keep the cable until it ends; return why.  ``signals`` is what ``vdexdp.signals.as_descriptor`` gives.

        SIGUSR1, if it is among them, is answered by a line on stderr; the others end the cable.  Raises HostError.
        """
        while True:
            if self._cable is not None:
                cause = self._pump(self._cable, signals)
            else:
                assert self._plug is not None
                cause = self._wait(self._plug, signals)
            if not self._goes_on_in_userspace():
                return cause

    def _pump(self, cable: Cable, signals: int) -> str:
        """Keep a cable whose frames pass through this process."""
        cable.watch(signals, lambda: self._signalled(signals))
        while True:
            if self._plug is not None:
                self._watch_plug(cable, self._plug)
            try:
                ending = cable.step(None if self._plug is None else self._plug.timeout())
                if self._plug is not None:
                    self._plug.tick()
            except HangUp as end:
                self._hung_up = True
                return str(end)
            if ending is not None:
                return ending.cause

    def _goes_on_in_userspace(self) -> bool:
        """A tap that was moved to another network namespace is out of the daemon's reach, but not of ours."""
        from vdexdp.plugins.tap import is_attached

        moved = [name for fd, name in self._taps.values() if is_attached(fd)]
        if not self._hung_up or not moved or self.accel == "require":
            return False
        self._hung_up = False
        self._unplug()
        if self._bridge_at is not None:
            self._opened.pop(self._bridge_at).close()
            self._bridge_at = None
        self._open_user(f"{moved[0]} was moved to another network namespace")
        print(f"vdexdp: {self.path}", file=sys.stderr, flush=True)
        return True

    def close(self) -> None:
        """Unwind everything; idempotent."""
        while self._opened:
            self._opened.popitem()[1].close()
        self._unplug()
        while self._taps:
            os.close(self._taps.popitem()[1][0])

    def status(self) -> str:
        """What has passed so far, and what was lost at which end, as far as this process knows."""
        if self._cable is None:
            return 'frames pass in the kernel; "vdexdp show" counts them'
        said = [f"{flow.frames} frames, {flow.bytes} bytes" for flow in (self._cable.left, self._cable.right)]
        text = f"{said[0]} to the right, {said[1]} to the left"
        for stream, side in ((self._cable.left.source, "left"), (self._cable.right.source, "right")):
            lost = ", ".join(f"{count} {reason}" for reason, count in sorted(stream.drops.items()) if count)
            text += (f"; lost at the {side} end: {lost}" if lost else "") + (
                f"; {side} end: {fault}" if (fault := stream.fault()) else ""
            )
        return text

    def _unplug(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._plug is not None:
            self._plug.close()
            self._plug = None

    def _signalled(self, signals: int) -> Ending | None:
        from vdexdp.cable import Ending

        for number in received(signals):
            if number != SIGUSR1:
                return Ending(None, number.name)
            print(f"vdexdp: {self.path}; {self.status()}", file=sys.stderr, flush=True)
        return None

    def _come(self) -> None:
        """Be known to a daemon that runs, before our node can be found: whoever finds it waits until it is ours."""
        from vdexdp.control.client import open_channel

        with suppress(HostError):
            self._channel = open_channel()

    def _open_user(self, why: str) -> None:
        from vdexdp.cable import Cable

        check_uplink(*self.ends)
        self._cable = Cable(self._stream(0), self._stream(1))
        self.path = f"in userspace ({why})"

    def _open_kernel(self, wanted: Plan) -> None:
        from vdexdp.control.client import plug
        from vdexdp.control.protocol import PlugRequest, Visit

        ends: list[WireEnd] = []
        fds: list[int] = []
        indices: list[int | None] = []
        visit: socket.socket | None = None
        for index, kernel in enumerate(wanted.ends):
            if isinstance(kernel, Member) and wanted.way == "node":
                from vdexdp.control.client import NotRunning, may_run
                from vdexdp.plugins import vde

                if os.geteuid():
                    raise PrivilegeError(self.ends[index].vnl, "only root joins a node in the kernel")
                if not may_run():  # nobody whom the visit could interest, and one that has to be started knows no nodes
                    raise NotRunning("daemon", "none runs in this network namespace")
                visit = vde.visit(kernel.path)
                ends.append(Visit(self.ends[index].vnl))
                indices.append(len(fds))
                fds.append(visit.fileno())
                continue
            if isinstance(kernel, NoKernelEnd):
                ends.append(self._bridged(index, kernel))
                indices.append(None)
                continue
            if isinstance(kernel, Inside):
                indices.append(len(fds))
                fds.append(kernel.netns)
                kernel = Inside(kernel.name, vlan=kernel.vlan)
            elif isinstance(kernel, Netdev) and kernel.create == "tap":
                from dataclasses import replace

                from vdexdp.plugins.tap import open_tap

                self._taps[index] = fd, name = open_tap(kernel.name)
                self._vlans[index] = kernel.vlan
                indices.append(len(fds))
                fds.append(fd)
                kernel = replace(kernel, name=name)
            else:
                indices.append(None)
            ends.append(kernel)
        vnls = (self.ends[0].vnl, self.ends[1].vnl)
        user = user_name(os.getuid())
        request = PlugRequest(
            (ends[0], ends[1]),
            vnls,
            "require" if self.accel == "require" else "auto",
            os.getpid(),
            user,
            (indices[0], indices[1]),
        )
        try:
            channel, self._channel = self._channel, None
            self._plug = made = plug(request, fds, start=wanted.way != "node", channel=channel)
        finally:
            if visit is not None:
                visit.close()
        if wanted.way == "bridge":
            self._bridge(wanted, made)
        paths = ", ".join(
            f"{path.end}: {path.path}" + (f" ({path.why})" if path.why else "") for path in made.reply.paths
        )
        notes = "".join(f"; {note}" for note in made.reply.notes)
        way = "in the kernel" if wanted.way in ("kernel", "node") else f"bridged into the kernel ({wanted.why})"
        self.path = f"{way}: {paths}{notes}" if paths or notes else way

    def _bridged(self, index: int, kernel: NoKernelEnd) -> WireEnd:
        from vdexdp.control.protocol import Bridge

        node = self._nodes.get(index)
        if node is None or not isinstance(kernel, Node):
            return Bridge(self.ends[index].vnl)
        return Bridge(self.ends[index].vnl, node.control_path, kernel.mode, kernel.expiry)

    def _bridge(self, wanted: Plan, made: Plug) -> None:
        from vdexdp.cable import Cable
        from vdexdp.plugins.tap import TapStream

        index = next(index for index, end in enumerate(wanted.ends) if isinstance(end, NoKernelEnd))
        tap = self._opened[1 - index] = TapStream(os.dup(made.bridge), "the bridge tap")
        self._bridge_at = 1 - index
        if index in self._nodes:
            self._nodes[index].join_switch(made.clients)
        self._cable = Cable(self._stream(index), tap)

    def _stream(self, index: int) -> Stream:
        """One end in userspace, opened once; a tap that was opened for the kernel path is used here then."""
        if index not in self._opened:
            if index in self._taps:
                from vdexdp.plugins.tap import TapStream

                stream: Stream = TapStream(*self._taps.pop(index))
                if self._vlans.get(index):
                    from vdexdp.plugins.vlan import wrapped

                    stream = wrapped(stream, self._vlans[index])
            else:
                stream = self.ends[index].open(self.contexts[index])
                if isinstance(self.ends[index].kernel_end(), Node):
                    self._nodes[index] = cast("NetnodeStream", stream)
            self._opened[index] = stream if self._wrap is None or index == 0 else self._wrap(stream)
        return self._opened[index]

    def _watch_plug(self, cable: Cable, made: Plug) -> None:
        if made.fileno() != self._watched:
            cable.unwatch(self._watched)
            self._watched = made.fileno()
            if self._watched >= 0:
                cable.watch(self._watched, made.serve)

    def _wait(self, made: Plug, signals: int) -> str:
        """Keep a plug whose frames pass in the kernel."""
        while True:
            polled = select.poll()
            polled.register(signals, select.POLLIN)
            if made.fileno() >= 0:
                polled.register(made.fileno(), select.POLLIN)
            timeout = made.timeout()
            ready = dict(polled.poll(None if timeout is None else timeout * 1000 + 1))
            if signals in ready and (ending := self._signalled(signals)):
                return ending.cause
            try:
                if made.fileno() in ready:
                    made.serve()
                made.tick()
            except HangUp as end:
                self._hung_up = True
                return str(end)
