# SPDX-License-Identifier: GPL-2.0-or-later
"""Who watches: the observed build of the programs, its observers, its mirrors.

While there is an observer or a mirror, every link has the observed build behind it (bpf/observe.h), otherwise the
normal one, which knows nothing of all this.  The change is that of an upgrade: load first, then update link by link.

An observer is a slot of the map ``observers`` and a ring, which only the process that watches reads.  Mirrors stand in
the map ``mirrors`` without gaps, for as long as their port and their device are there.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Container
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from vdexdp.control.abi import OBSERVE_MAPS, K, S
from vdexdp.control.bpf_map import Map, create_ring
from vdexdp.control.bytecode import OBSERVED
from vdexdp.control.channel import Body
from vdexdp.control.host import Host
from vdexdp.control.libbpf import possible_cpus
from vdexdp.control.programs import Programs, denied
from vdexdp.control.wish import Wish
from vdexdp.errors import HostError, VdexdpError


@dataclass
class Mirror:
    """A port's traffic, both ways, copied to a device: ``target`` is its name, ``ingress`` up into the host's stack."""

    port: int
    switch: int
    target: str
    ifindex: int
    ingress: bool = False


class Observatory:
    """One daemon's.  Nothing of it exists while nobody watches."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.watching: set[int] = set()
        self.mirrors: dict[int, Mirror] = {}
        """By port."""
        self._maps: dict[str, Map] = {}
        self._spare = -1
        """A ring that nobody reads; rings are compared with it."""

    @property
    def active(self) -> bool:
        return bool(self._maps)

    # Observers

    def watch(self, wish: Wish) -> tuple[int, int]:
        """A new observer: its slot, and its ring, the caller's.  Raises HostError; then nothing has changed."""
        slot = next((n for n in range(K["MAX_OBSERVERS"]) if n not in self.watching), None)
        if slot is None:
            raise HostError("watch", f"{K['MAX_OBSERVERS']} captures or traces are running already", "end one")
        observer = wish.observer()
        with ExitStack() as undo:
            self._begin()
            undo.callback(self._end_if_alone)
            try:
                ring = create_ring(_ring_size(wish.buffer))
                undo.callback(os.close, ring)
                self._maps["rings"].update(slot, ring)
                self._maps["observers"].update(slot, observer)
            except OSError as error:
                raise denied(error) from error
            self.watching.add(slot)
            undo.pop_all()
        return slot, ring

    def counts(self, slot: int) -> Body:
        """How many frames an observer got, and how many were lost to it because its ring was full."""
        one = self._maps["observers"].lookup(slot)
        return {"seen": one.seen, "lost": one.lost}

    def unwatch(self, slot: int) -> Body:
        """End an observer.  When this returns, nothing is written into its ring any more; its last counts."""
        # The kernel returns from this when no program runs any more that may have seen what was there before.
        self._maps["rings"].delete(slot)
        counts = self.counts(slot)
        self._maps["observers"].update(slot, S["observer"]())
        self.watching.discard(slot)
        self._end_if_alone()
        return counts

    def show(self) -> Body:
        """Who watches; empty when nobody does."""
        return {"observers": len(self.watching), "mirrors": self.mirrored()} if self.active else {}

    # Mirrors

    def mirror(self, one: Mirror) -> None:
        """Begin to copy.  Raises HostError; then nothing has changed."""
        if len(self.mirrors) >= K["MAX_MIRRORS"]:
            raise HostError("mirror", f"there are {K['MAX_MIRRORS']} already", "take one off")
        self._begin()
        self.mirrors[one.port] = one
        try:
            self._write_mirrors()
        except OSError as error:
            del self.mirrors[one.port]
            self._end_if_alone()
            raise denied(error) from error

    def unmirror(self, port: int) -> bool:
        """False where there was none."""
        if self.mirrors.pop(port, None) is None:
            return False
        self._write_mirrors()
        self._end_if_alone()
        return True

    def mirrored(self) -> list[Body]:
        """All mirrors, with the number of copies made and refused."""
        found: list[Body] = []
        for place, one in enumerate(self.mirrors.values()):
            info = self._maps["mirrors"].lookup(place)
            about: Body = {"port": one.port, "switch": one.switch, "target": one.target, "ifindex": one.ifindex}
            found.append(about | {"frames": info.frames, "refused": info.refused})
        return found

    def keep(self, ports: Container[int]) -> None:
        """Take off the mirrors of other ports."""
        for port in [port for port in self.mirrors if port not in ports]:
            self.unmirror(port)

    def devices(self) -> set[int]:
        """What the mirrors need, by ifindex."""
        return {one.ifindex for one in self.mirrors.values()}

    def lose(self, ifindex: int) -> list[int]:
        """A device is gone: the ports that were mirrored to it."""
        ports = [one.port for one in self.mirrors.values() if one.ifindex == ifindex]
        for port in ports:
            self.unmirror(port)
        return ports

    def _write_mirrors(self) -> None:
        """Entries move up; their counts with them."""
        table = self._maps["mirrors"]
        old = {info.port: info for info in (table.lookup(n) for n in range(K["MAX_MIRRORS"])) if info.ifindex}
        entries = []
        for one in self.mirrors.values():
            entry = S["mirror"](port=one.port, switch_id=one.switch, ifindex=one.ifindex, to_ingress=one.ingress)
            if one.port in old and old[one.port].ifindex == one.ifindex:
                entry.frames, entry.refused = old[one.port].frames, old[one.port].refused
            entries.append(entry)
        for place in range(K["MAX_MIRRORS"]):
            table.update(place, entries[place] if place < len(entries) else S["mirror"]())

    # The two builds

    def _begin(self) -> None:
        """Put the observed build behind all links.  Raises VdexdpError, with the normal one there."""
        if self.active:
            return
        host = self.host
        if host.refused:
            raise HostError("watch", f"programs of an older version go on: {host.refused}", "plug everything again")
        with ExitStack() as undo:
            try:
                self._spare = create_ring(mmap.PAGESIZE)
                for one in OBSERVE_MAPS.values():
                    entries = possible_cpus() if one.name == "rooms" else one.entries
                    self._maps[one.name] = Map.create(
                        one.name,
                        one.kind,
                        one.key,
                        one.value,
                        entries,
                        one.flags,
                        self._spare if one.name == "rings" else 0,
                    )
            except OSError as error:
                raise denied(error) from error
            finally:
                undo.callback(self._close)
            programs = Programs({**host.dataplane.maps, **self._maps}, host.dataplane.features, OBSERVED)
            undo.callback(programs.close)
            programs.prepare({link.point for link in host.links})
            undo.callback(self._put_normal)
            host.dataplane.observed = programs
            programs.activate()
            for link in list(host.links):
                link.put(programs[link.point])
            undo.pop_all()

    def _end_if_alone(self) -> None:
        if self.active and not self.watching and not self.mirrors:
            self._end()

    def _end(self) -> None:
        programs = self.host.dataplane.observed
        try:
            self._put_normal()
        finally:
            if programs is not None:
                programs.close()
            self._close()

    def _put_normal(self) -> None:
        """Links first, so that observed programs don't continue in normal ones."""
        dataplane = self.host.dataplane
        dataplane.observed = None
        dataplane.prepare({link.point for link in self.host.links})
        failed: list[VdexdpError] = []
        for link in list(self.host.links):
            try:
                link.put(dataplane.program(link.point))
            except VdexdpError as error:
                failed.append(error)
        dataplane.programs.activate()
        if failed:
            raise failed[0]

    def _close(self) -> None:
        for one in self._maps.values():
            one.close()
        self._maps.clear()
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def close(self) -> None:
        """The daemon ends.  Observers end with it; mirrors go on where plugs hold their links."""
        for slot in list(self.watching):
            with suppress(VdexdpError, OSError):
                self.unwatch(slot)
        self.mirrors.clear()
        if self.host.dataplane.observed is not None:
            self.host.dataplane.observed.close()
            self.host.dataplane.observed = None
        self._close()


def _ring_size(wanted: int) -> int:
    size = mmap.PAGESIZE
    while size < wanted:
        size *= 2
    return size
