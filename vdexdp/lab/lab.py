# SPDX-License-Identifier: GPL-2.0-or-later
"""A laboratory: hosts, guests and the wires between them as network namespaces of this machine.

A lab's names begin with ``vdxlab-<pid>-<number>-``.  Leaving the ``with`` block ends its processes and deletes
its namespaces, whatever happened inside; devices go with them, as none is ever made outside.  When the owner
itself is killed, the next lab on the machine sees a prefix whose pid is dead and sweeps that one too.

    with Lab() as lab:
        left, right = lab.host("left"), lab.host("right")
        lab.underlay(left, right)
        guest = lab.guest(left, "g1", 1)
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal as signals
import subprocess
import time
from types import TracebackType

from vdexdp.errors import HostError, PrivilegeError, RequestError
from vdexdp.lab.namespace import RUN_NETNS, SLOWNESS, Namespace, alive, command_line, marked

PREFIX = "vdxlab-"
UNDERLAY = "lan0"
GUEST_MTU = 1500

_numbers = itertools.count(1)


def _ip_batch(lines: list[str]) -> None:
    result = subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), capture_output=True, text=True, check=False)
    if result.returncode:
        raise HostError("ip", result.stderr.strip())


def _names(prefix: str) -> list[str]:
    if not RUN_NETNS.is_dir():
        return []
    return [entry.name for entry in RUN_NETNS.iterdir() if entry.name.startswith(prefix)]


def sweep(prefix: str) -> None:
    """End every process of the lab with this prefix and delete its namespaces."""
    for number in (signals.SIGTERM, signals.SIGKILL):
        left = marked(prefix)
        for pid in left:
            for what in (number, signals.SIGCONT):
                try:
                    os.kill(pid, what)
                except ProcessLookupError:
                    break
        end = time.monotonic() + 2
        while any(alive(pid) for pid in left) and time.monotonic() < end:
            time.sleep(0.005)
    for name in _names(prefix):
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def sweep_dead() -> None:
    """Clean up after labs whose owner was killed."""
    for prefix in {"-".join(name.split("-")[:3]) + "-" for name in _names(PREFIX)}:
        owner = prefix.split("-")[1]
        if owner.isdigit() and not alive(int(owner)):
            sweep(prefix)


class Lab:
    """See the module's text.  All methods raise HostError when the kernel refuses something."""

    def __init__(self) -> None:
        self.prefix = f"{PREFIX}{os.getpid()}-{next(_numbers)}-"
        self.namespaces: dict[str, Namespace] = {}
        self._hosts = itertools.count(1)
        self._networks = itertools.count(0)

    def __enter__(self) -> Lab:
        if os.geteuid():
            raise PrivilegeError("lab", "network namespaces need root", "run it with sudo")
        if not shutil.which("ip"):
            raise HostError("lab", "the command ip is missing", "install iproute2")
        sweep_dead()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self, patience: float = 0.0) -> list[str]:
        """End everything and forget everything; idempotent.

        Returns the command lines of processes that nobody had left to end: those that were started by others in the
        lab and still lived ``patience`` seconds after the lab's own processes had ended.
        """
        spawned = [process for namespace in self.namespaces.values() for process in namespace.processes]
        for process in spawned:
            if process.poll() is None:
                process.signal(signals.SIGTERM)
                process.signal(signals.SIGCONT)
        for process in spawned:
            process.stop(timeout=3)
            process.close()
        end = time.monotonic() + patience * SLOWNESS
        while (orphans := marked(self.prefix)) and time.monotonic() < end:
            time.sleep(0.02)
        left = [f"{pid}: {command_line(pid)}" for pid in orphans]
        sweep(self.prefix)
        self.namespaces.clear()
        return left

    def namespace(self, name: str) -> Namespace:
        """A namespace with its loopback up, in which IPv6 addresses are usable at once (no duplicate address
        detection).
        """
        if name in self.namespaces:
            raise RequestError(name, "this name is taken in the lab")
        made = Namespace(self.prefix, name)
        _ip_batch([f"netns add {made.full_name}"])
        self.namespaces[name] = made
        for scope in ("all", "default"):
            made.sysctl(f"net.ipv6.conf.{scope}.accept_dad", "0")
        made.ip("link set lo up")
        return made

    def host(self, name: str) -> Namespace:
        """A namespace that plays a machine on the underlay."""
        return self.namespace(name)

    def pair(
        self, left: Namespace, left_device: str, right: Namespace, right_device: str, mtu: int = GUEST_MTU
    ) -> None:
        """A veth from one namespace to another; both ends up."""
        _ip_batch(
            [
                f"link add name {left_device} netns {left.full_name} mtu {mtu} type veth "
                f"peer name {right_device} netns {right.full_name} mtu {mtu}"
            ]
        )
        left.ip(f"link set dev {left_device} up")
        right.ip(f"link set dev {right_device} up")

    def underlay(
        self, *hosts: Namespace, device: str = UNDERLAY, mtu: int = GUEST_MTU, like_a_wire: bool = False
    ) -> None:
        """Join hosts by a LAN: a veth for two, a bridge in a namespace of its own for more.

        Network n of the lab is 192.0.2.0/24 for n = 0 and 198.18.n.0/24 after it, in IPv6 2001:db8:n::/64; host
        number i has .i and ::i. Multicast is routed to the device, if no earlier underlay has that route.
        ``like_a_wire`` turns off the veth's transmit offloads, so that only whole, finished packets travel, as
        on a cable between two NICs.
        """
        network = next(self._networks)
        if len(hosts) == 2:
            self.pair(hosts[0], device, hosts[1], device, mtu)
        else:
            segment = self.namespace(f"lan{network}")
            segment.ip(f"link add name br0 mtu {mtu} type bridge mcast_snooping 0")
            segment.ip("link set br0 up")
            for number, host in enumerate(hosts, 1):
                self.pair(host, device, segment, f"port{number}", mtu)
                segment.ip(f"link set port{number} master br0")
        for number, host in enumerate(hosts, 1):
            v4, v6 = self.underlay_addresses(number, network)
            host.ip(f"address add {v4}/24 dev {device}")
            host.ip(f"address add {v6}/64 dev {device} nodad")
            if not host.ip("route show 224.0.0.0/4"):
                host.ip(f"route add 224.0.0.0/4 dev {device}")
            if like_a_wire:
                host.run("ethtool", "-K", device, "tx", "off")

    @staticmethod
    def underlay_addresses(number: int, network: int = 0) -> tuple[str, str]:
        """IPv4 and IPv6 of the host at place ``number`` (from 1) of a call to ``underlay``, the lab's
        ``network``-th (from 0).
        """
        v4 = f"198.18.{network}.{number}" if network else f"192.0.2.{number}"
        return v4, f"2001:db8:{network:x}::{number:x}"

    def guest(self, host: Namespace, name: str, number: int, mtu: int = GUEST_MTU, device: str = "") -> Namespace:
        """A guest with 10.0.0.<number>/24 and fd00::<number>/64 on its eth0; the near end in the host is called
        ``device`` or ``name``.
        """
        guest = self.namespace(name)
        self.pair(host, device or name, guest, "eth0", mtu)
        host.ip(f"link set dev {device or name} addrgenmode none")
        self.address(guest, "eth0", number)
        return guest

    @staticmethod
    def address(namespace: Namespace, device: str, number: int) -> None:
        """The lab's guest addresses of this number on an existing device, which is brought up."""
        namespace.ip(f"address add 10.0.0.{number}/24 dev {device}")
        namespace.ip(f"address add fd00::{number:x}/64 dev {device} nodad")
        namespace.ip(f"link set dev {device} up")

    @staticmethod
    def guest_addresses(number: int) -> tuple[str, str]:
        return f"10.0.0.{number}", f"fd00::{number:x}"

    @staticmethod
    def bridge(host: Namespace, name: str, *members: str, mtu: int = GUEST_MTU) -> None:
        """A Linux bridge over existing devices of one namespace, without multicast snooping."""
        host.ip(f"link add name {name} mtu {mtu} type bridge mcast_snooping 0")
        host.ip(f"link set dev {name} addrgenmode none")
        for member in members:
            host.ip(f"link set dev {member} master {name} up")
        host.ip(f"link set dev {name} up")
