# SPDX-License-Identifier: GPL-2.0-or-later
"""An interface inside of an enclosure, plugged into a VNL's end that stays outside.

In userspace it is a TAP interface whose descriptor was handed out.  In the kernel path it is a veth that the daemon
makes, whose near end, out here, is a port; for users other than root that is a matter of the daemon's policy.

Each inlet is served by a thread of its own, until its end hangs up, whereupon the interface vanishes, or it is closed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from abc import ABC, abstractmethod

from vdexdp.cable import Cable
from vdexdp.cli.enclosure import Enclosure
from vdexdp.cli.joint import Accel, Joint
from vdexdp.errors import HostError, KernelPathError, VdexdpError
from vdexdp.plugins import registry
from vdexdp.plugins.base import Inside, Member, NoKernelEnd, OpenContext, Parsed, Plugin, Stream
from vdexdp.plugins.tap import TapStream

_CONTEXT = OpenContext(description="vdens")


class Inlet(ABC):
    """One interface.  ``path`` says which way its frames go, and why not a faster one."""

    def __init__(self, name: str, end: registry.End) -> None:
        self.name = name
        self.end = end
        self.path = ""
        # What is written here is read as the number of a signal; see vdexdp.signals.
        self._told, self._tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Unplug, and wait until that is done."""
        os.write(self._tell, bytes((signal.SIGTERM,)))
        self._thread.join()
        os.close(self._told)
        os.close(self._tell)

    def _live(self) -> None:
        try:
            cause = self._serve(self._told)
            if cause != signal.SIGTERM.name:
                self._say(cause or "hung up")
        except VdexdpError as error:
            self._say(str(error))
        finally:
            self._release()

    def _say(self, cause: str) -> None:
        print(f"vdens: {self.end.vnl}: {cause}; {self.name} is gone", file=sys.stderr)

    @abstractmethod
    def _serve(self, signals: int) -> str:
        """Plugged, until the end; why it ended.  Raises HostError."""

    @abstractmethod
    def _release(self) -> None:
        """Remove the interface."""


class UserInlet(Inlet):
    """A TAP interface, pumped here.  Raises HostError."""

    def __init__(self, inside: Enclosure, name: str, end: registry.End, why: str) -> None:
        super().__init__(name, end)
        self.path = f"in userspace ({why})"
        self._tap = TapStream(inside.tap(name), name)
        self._stream = end.open(_CONTEXT)

    def _serve(self, signals: int) -> str:
        cable = Cable(self._stream, self._tap)
        cable.stop_on(signals)
        return cable.run().cause

    def _release(self) -> None:
        self._stream.close()
        self._tap.close()


class _Inside(Plugin):
    """The inside as an end of a cable; nobody can name it."""

    scheme = "inside"
    grammar = "raw"
    summary = "an interface of an enclosure"

    def parse(self, parsed: Parsed) -> Inside:
        raise NotImplementedError

    def open(self, spec: Inside, context: OpenContext) -> Stream:
        raise NotImplementedError

    def kernel_end(self, spec: Inside) -> Inside:
        return spec


class KernelInlet(Inlet):
    """A veth that the daemon makes, whose near end is a port of the kernel path.

    Raises HostError where that can't be had.
    """

    def __init__(self, inside: Enclosure, name: str, end: registry.End) -> None:
        super().__init__(name, end)
        namespace = inside.network()
        try:
            one = registry.End(name, _Inside(), Inside(name, namespace))
            self._joint = Joint((one, end), (_CONTEXT, _CONTEXT), "require")
            self._joint.open()
        finally:
            os.close(namespace)
        self.path = self._joint.path

    def _serve(self, signals: int) -> str:
        return self._joint.run(signals)

    def _release(self) -> None:
        self._joint.close()


def open_inlet(inside: Enclosure, name: str, end: registry.End, accel: Accel) -> Inlet:
    """The best inlet that is to be had, started.  Raises VdexdpError."""
    from vdexdp.control.client import may_run

    inlet: Inlet | None = None
    kernel = end.kernel_end()
    if accel == "off":
        why = "--accel off"
    elif isinstance(kernel, NoKernelEnd) and not (isinstance(kernel, Member) and may_run()):
        why = kernel.reason
    else:
        try:
            inlet = KernelInlet(inside, name, end)
        except HostError as error:
            if accel == "require":
                raise
            why = f"no kernel path: {error}"
    if inlet is None:
        if accel == "require":
            raise KernelPathError(end.vnl, f"runs in userspace: {why}")
        inlet = UserInlet(inside, name, end, why)
    inlet.start()
    return inlet
