# SPDX-License-Identifier: GPL-2.0-or-later
"""What an observer wants to see, as the client says it and as the kernel programs read it."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from vdexdp.control.abi import K, S
from vdexdp.control.channel import take
from vdexdp.control.sockets import swap16
from vdexdp.control.tables import mac_bytes
from vdexdp.errors import ProtocolError

BUFFER_MIN: Final = 256 * 1024
BUFFER_MAX: Final = 256 * 1024 * 1024


@dataclass(frozen=True)
class Wish:
    """0 and "" are for any; ``vlan`` is -1 for any, 0 for none.

    ``snap`` is bytes of a frame, ``buffer`` those of the ring; ``drops``: only what was dropped.
    """

    switch: int = 0
    port: int = 0
    mac: str = ""
    ethertype: int = 0
    vlan: int = -1
    l4_port: int = 0
    drops: bool = False
    snap: int = K["SNAP_MAX"]
    buffer: int = 8 * 1024 * 1024

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Wish:
        """Raises ProtocolError, and RequestError for what is no MAC address."""
        wish = cls(**{name: take(body, name, type(default), default) for name, default in vars(cls()).items()})
        ranges = {"switch": (0, K["MAX_SWITCHES"]), "port": (0, K["MAX_PORTS"]), "ethertype": (0, 1 << 16)}
        ranges |= {"vlan": (-1, 4095), "l4_port": (0, 1 << 16), "snap": (1, K["SNAP_MAX"] + 1)}
        ranges |= {"buffer": (BUFFER_MIN, BUFFER_MAX + 1)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(wish, name) < high:
                raise ProtocolError("watch", f'"{name}" is out of range')
        return wish

    def observer(self) -> Any:
        """For the map ``observers``."""
        one = S["observer"](
            flags=K["OBSERVER_F_ACTIVE"] | (K["OBSERVER_F_DROPS"] if self.drops else 0),
            switch_id=self.switch,
            port=self.port,
            snap=self.snap,
            proto=swap16(self.ethertype),
            vlan=K["VLAN_ANY"] if self.vlan < 0 else self.vlan,
            l4_port=swap16(self.l4_port),
        )
        ctypes.memmove(one.mac, mac_bytes(self.mac) if self.mac else bytes(6), 6)
        return one
