# SPDX-License-Identifier: GPL-2.0-or-later
"""What the maps say, as operations on switches, ports, tunnels and the FDB.

The programs read these maps while they are being written.  Each operation leaves them in a state that is safe at any
moment: a program believes a member or an FDB entry only if the port itself says that it belongs to the switch, so a
port is written before it is named anywhere, and cleared after its name was removed everywhere.

Generations only ever grow, even while an index is free: what was learnt about its last owner can't match its next one.
"""

from __future__ import annotations

import ctypes
import errno
import time
from collections.abc import Iterator
from typing import Any, Final, Protocol

from vdexdp.control import fdb
from vdexdp.control.abi import MAPS, K, S, enum
from vdexdp.control.sockets import swap16, words
from vdexdp.errors import HostError, RequestError

SECOND: Final = 1_000_000_000
_COUNTERS: Final = {
    "rx_frames": "frame_path",
    "rx_bytes": "frame_path",
    "tx_frames": "frame_path",
    "tx_bytes": "frame_path",
    "drops": "drop_reason",
    "exceptions": "exception_reason",
    "events": "event",
}
"""The arrays of ``struct counters``, all of __u64, and the enums that index them."""
_WORD: Final = ctypes.sizeof(ctypes.c_uint64)


class MapLike(Protocol):
    """What is used of a map (:class:`vdexdp.control.bpf_map.Map`)."""

    fd: int

    def lookup(self, key: Any) -> Any: ...
    def update(self, key: Any, value: Any) -> None: ...
    def delete(self, key: Any) -> bool: ...
    def items(self) -> Iterator[tuple[Any, Any]]: ...
    def bytes_batch(self) -> Iterator[tuple[memoryview, memoryview]]: ...


def mac_bytes(mac: str) -> bytes:
    """Raises RequestError for what is no MAC address."""
    try:
        packed = bytes.fromhex(mac.replace(":", "").replace("-", ""))
    except ValueError:
        packed = b""
    if len(packed) != 6:
        raise RequestError(mac, "not a MAC address", "write it like 02:00:00:00:00:01")
    return packed


class Tables:
    """Typed operations over the maps of one data plane."""

    def __init__(self, maps: dict[str, Any]) -> None:
        self.maps: dict[str, MapLike] = maps
        self.ports_used: set[int] = {0}
        self.switches_used: set[int] = {0}
        self.static: dict[tuple[int, int, bytes], int] = {}
        """Static FDB entries and their ports: generations don't make them forget."""
        self.sample = 0
        """Share of the frames that is timed, in 2^-32, at every port; 0 = none, and no round trips either."""

    # Indices

    def take_port(self) -> int:
        """A free port index with zeroed counters.  Raises HostError when all are taken."""
        index = _free(self.ports_used, MAPS["ports"].entries, "ports")
        for name in ("counters", "rtts"):
            self.maps[name].update(index, bytes(ctypes.sizeof(self.maps[name].lookup(index))))
        return index

    def take_switch(self) -> int:
        return _free(self.switches_used, MAPS["switches"].entries, "switches")

    def adopt(self) -> tuple[set[int], set[int]]:
        """Take over what stands in the maps: every used port and switch is taken.  Returns both sets."""
        self.ports_used |= {i for i in range(1, MAPS["ports"].entries) if self.port(i).kind != K["PORT_NONE"]}
        self.sample = max((self.port(index).sample for index in self.ports_used), default=0)
        self.switches_used |= {i for i in range(1, MAPS["switches"].entries) if self.switch(i).mode}
        for at in fdb.items(self.maps["fdb"]):
            if at.flags & K["FDB_F_STATIC"]:
                self.static[at.switch_id, at.vlan, at.mac] = at.port
        return self.ports_used - {0}, self.switches_used - {0}

    # Ports

    def port(self, index: int) -> Any:
        return self.maps["ports"].lookup(index)

    def write_port(self, index: int, **values: int) -> None:
        """Set fields of a port; the generation and the learning window stay."""
        info = self.port(index)
        info.sample = self.sample
        for name, value in values.items():
            setattr(info, name, value)
        self.maps["ports"].update(index, info)

    def set_sample(self, share: int) -> None:
        """Time this share of the frames, in 2^-32, at every port, and take round trips unless it is 0."""
        self.sample = share
        for index in self.ports_used - {0}:
            self.write_port(index)

    def clear_port(self, index: int) -> None:
        """Free an index; everything learnt about it is forgotten."""
        for place in [place for place, port in self.static.items() if port == index]:
            self.fdb_delete(*place)
        info = S["port_info"](generation=(self.port(index).generation + 1) & 0xFFFFFFFF)
        self.maps["ports"].update(index, info)
        self.maps["tunnels"].update(index, S["tunnel_info"]())
        self.ports_used.discard(index)

    def forget_port(self, index: int) -> None:
        """Forget all addresses that were learnt at a port; static entries stay."""
        self.write_port(index, generation=(self.port(index).generation + 1) & 0xFFFFFFFF)

    def set_ingress(self, ifindex: int, index: int, *, uplink: bool = False) -> None:
        self.maps["ingress"].update(_ingress_key(ifindex, uplink), index)

    def drop_ingress(self, ifindex: int, *, uplink: bool = False) -> None:
        self.maps["ingress"].delete(_ingress_key(ifindex, uplink))

    def drop_ingress_of(self, index: int) -> None:
        """Remove every device that leads to a port, whatever its ifindex."""
        for key, value in list(self.maps["ingress"].items()):
            if value.value == index:
                self.maps["ingress"].delete(key)

    def set_tx(self, index: int, ifindex: int) -> bool:
        """Let XDP programs redirect to this port; False where the device refuses.

        The device is looked up in the network namespace of the calling process.
        """
        try:
            self.maps["tx_ports"].update(index, ifindex)
        except OSError:
            return False
        return True

    def drop_tx(self, index: int) -> None:
        try:
            self.maps["tx_ports"].delete(index)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise

    def counters(self, index: int) -> dict[str, Any]:
        """The sum over all CPUs: rx_frames, rx_bytes, tx_frames, tx_bytes by path, drops, exceptions, events by name.

        Reasons and events that never happened are left out.
        """
        sums = self._sums("counters", index)
        found: dict[str, Any] = {}
        for name, kind in _COUNTERS.items():
            first = getattr(S["counters"], name).offset // _WORD
            values = {row.label: sums[first + row.value] for row in enum(kind)}
            found[name] = values if kind == "frame_path" else {label: value for label, value in values.items() if value}
        return found

    def histogram(self, name: str, index: int) -> dict[str, Any]:
        """One of "timings" or "rtts" over all CPUs: ``sum`` in ns, ``buckets`` as in ``struct histogram``."""
        total, *buckets = self._sums(name, index)
        return {"sum": total, "buckets": buckets}

    def _sums(self, name: str, index: int) -> list[int]:
        """A per-CPU struct that is all __u64, summed over the CPUs member by member."""
        words = memoryview(bytes(self.maps[name].lookup(index))).cast("Q")
        size = ctypes.sizeof(MAPS[name].value) // _WORD
        return [sum(words[at::size]) for at in range(size)]

    def set_vlan(self, ifindex: int, egress: bool, step: int, table: Any) -> None:
        self.maps["vlans"].update(_vlan_key(ifindex, egress, step), table)

    def drop_vlan(self, ifindex: int, egress: bool, step: int) -> None:
        self.maps["vlans"].delete(_vlan_key(ifindex, egress, step))

    def drop_vlans_of(self, index: int) -> None:
        """Remove every table that counts its drops at a port."""
        for key, table in list(self.maps["vlans"].items()):
            if table.port == index:
                self.maps["vlans"].delete(key)

    # Switches

    def switch(self, switch: int) -> Any:
        return self.maps["switches"].lookup(switch)

    def write_switch(self, switch: int, mode: int, expiry: int) -> None:
        """Make a switch without ports; ``expiry`` in seconds."""
        info = S["switch_info"](mode=mode, expiry=expiry * SECOND, generation=self.switch(switch).generation + 1)
        self.maps["switches"].update(switch, info)

    def switch_flag(self, switch: int, flag: int, present: bool) -> None:
        info = self.switch(switch)
        info.flags = info.flags | flag if present else info.flags & ~flag
        self.maps["switches"].update(switch, info)

    def clear_switch(self, switch: int) -> None:
        info = S["switch_info"](generation=(self.switch(switch).generation + 1) & 0xFFFFFFFF)
        self.maps["switches"].update(switch, info)
        self.switches_used.discard(switch)

    def set_tunnel(self, switch: int, index: int) -> None:
        info = self.switch(switch)
        info.tunnel = index
        self.maps["switches"].update(switch, info)

    def add_member(self, switch: int, index: int) -> None:
        """Raises HostError when the switch is full."""
        info = self.switch(switch)
        members = list(info.member[: info.members])
        if index in members:
            return
        if len(members) >= K["MAX_MEMBERS"]:
            raise HostError(f"switch {switch}", f"it has {len(members)} local ports, more are not possible")
        self._write_members(switch, info, [*members, index])

    def set_first(self, switch: int, index: int) -> None:
        """Make a member the first, for the modes in which that one is not like the others."""
        info = self.switch(switch)
        self._write_members(switch, info, [index, *(one for one in info.member[: info.members] if one != index)])

    def set_turns(self, switch: int, index: int, count: int) -> None:
        """Name a member so many times, that with MODE_BONDING it has as many turns; at 0 it is sent nothing."""
        info = self.switch(switch)
        others = [member for member in info.member[: info.members] if member != index]
        self._write_members(switch, info, others + [index] * min(count, K["MAX_MEMBERS"] - len(others)))

    def drop_member(self, switch: int, index: int) -> None:
        info = self.switch(switch)
        members = [member for member in info.member[: info.members] if member != index]
        if len(members) != info.members:
            self._write_members(switch, info, members)

    def _write_members(self, switch: int, info: Any, members: list[int]) -> None:
        info.members = len(members)
        info.member = type(info.member)(*members)
        self.maps["switches"].update(switch, info)

    # Tunnels

    def write_tunnel(self, index: int, **values: Any) -> None:
        """Set fields of a tunnel; ``local`` and ``group`` as text, ports in host order, MACs as bytes."""
        info = self.maps["tunnels"].lookup(index)
        for name, value in values.items():
            if name in ("local", "group"):
                value = type(info.local)(*words(value))
            elif name in ("src_port", "group_port"):
                value = swap16(value)
            elif name in ("uplink_mac", "group_mac"):
                value = type(info.uplink_mac)(*value)
            setattr(info, name, value)
        self.maps["tunnels"].update(index, info)

    def tunnel_flag(self, index: int, flag: int, present: bool) -> None:
        info = self.maps["tunnels"].lookup(index)
        info.flags = info.flags | flag if present else info.flags & ~flag
        self.maps["tunnels"].update(index, info)

    def set_endpoint(self, key: bytes, index: int) -> None:
        self.maps["endpoints"].update(key, index)

    def drop_endpoint(self, key: bytes) -> None:
        self.maps["endpoints"].delete(key)

    def endpoints_of(self, index: int) -> set[bytes]:
        """The endpoint keys that lead to a tunnel."""
        return {bytes(key) for key, value in list(self.maps["endpoints"].items()) if value.value == index}

    def tunnel_flags(self, index: int) -> int:
        return int(self.maps["tunnels"].lookup(index).flags)

    def endpoint_owner(self, key: bytes) -> int | None:
        value = self.maps["endpoints"].lookup(key)
        return None if value is None else int(value.value)

    # FDB

    def fdb_add(self, switch: int, vlan: int, mac: bytes, port: int, endpoint: tuple[str, int] | None = None) -> None:
        """A static entry: it never ages and never moves."""
        entry = S["fdb_entry"](
            last_seen=time.clock_gettime_ns(time.CLOCK_MONOTONIC), port=port, flags=K["FDB_F_STATIC"]
        )
        if endpoint is not None:
            entry.addr = type(entry.addr)(*words(endpoint[0]))
            entry.udp_port = swap16(endpoint[1])
        self.maps["fdb"].update(fdb_key(switch, vlan, mac), entry)
        self.static[switch, vlan, mac] = port

    def fdb_delete(self, switch: int, vlan: int, mac: bytes) -> bool:
        self.static.pop((switch, vlan, mac), None)
        return self.maps["fdb"].delete(fdb_key(switch, vlan, mac))

    def fdb_flush(self, switch: int) -> None:
        """Forget all that was learnt; static entries stay."""
        info = self.switch(switch)
        info.generation += 1
        self.maps["switches"].update(switch, info)


def _free(used: set[int], limit: int, what: str) -> int:
    for index in range(1, limit):
        if index not in used:
            used.add(index)
            return index
    raise HostError(what, f"all {limit - 1} are in use")


def _ingress_key(ifindex: int, uplink: bool) -> int:
    return ifindex | K["UPLINK_KEY"] if uplink else ifindex


def _vlan_key(ifindex: int, egress: bool, step: int) -> Any:
    return S["vlan_key"](ifindex=ifindex, egress=egress, step=step)


def fdb_key(switch: int, vlan: int, mac: bytes) -> Any:
    key = S["fdb_key"](switch_id=switch, vlan=vlan)
    key.mac = type(key.mac)(*mac)
    return key


def endpoint_key(address: str, port: int, vni: int, uplink: int) -> bytes:
    """The key under which packets to (address, UDP port) with a VNI, arriving by an uplink, are ours."""
    key = S["endpoint_key"](uplink=uplink, vni=vni, udp_port=swap16(port))
    key.addr = type(key.addr)(*words(address))
    return bytes(key)
