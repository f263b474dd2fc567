# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel objects: maps, programs, and the links that hold programs to interfaces.

Everything lives by descriptor.  :meth:`Dataplane.create` makes new maps; :meth:`Dataplane.adopt` goes on with maps
that another process held meanwhile.  Programs are loaded when the first interface wants one.  An attachment is a
:class:`Link`; when the last duplicate of its descriptor is closed, by whatever death, the kernel detaches the program.

Attach points:

=====================  ====  =======================================================================
``port_ingress``       tc    input of a "wire" port (netdev://)
``port_egress``        tc    input of a "stack" port (tap://): what the host sends on it
``uplink_ingress``     tc    decapsulation on an uplink
``exception_ingress``  tc    what the exception worker writes to the exception tap
``vlan_ingress``       tc    vlan:// in front of a port: what comes by a "wire", what goes out to a "stack"
``vlan_egress``        tc    the same for the other direction
``port_xdp``           xdp   fast path of a "wire" port, always together with ``port_ingress``
``uplink_xdp``         xdp   fast path of an uplink, always together with ``uplink_ingress``
=====================  ====  =======================================================================
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from vdexdp.control import abi, bpf_link, bpf_map
from vdexdp.control.features import Features
from vdexdp.control.programs import Programs, denied
from vdexdp.control.unlinked import xdp_refused
from vdexdp.errors import HostError, KernelFeatureError


class Link:
    """An attached program.

    ``fd`` is -1 where the kernel has no links: ``close`` then undoes it, and ``put`` replaces it, by other means.
    """

    def __init__(
        self,
        fd: int,
        point: str,
        ifindex: int,
        undo: Callable[[], None] | None = None,
        change: Callable[[int], None] | None = None,
    ) -> None:
        self.fd = fd
        self.point = point
        self.ifindex = ifindex
        self._undo = undo
        self._change = change

    def put(self, program: int) -> None:
        """Another program in place of the one that is attached, without a gap.  Raises HostError.

        Nothing where it is detached, or its interface gone.
        """
        try:
            if self.fd >= 0:
                bpf_link.update(self.fd, program)
            elif self._undo is not None and self._change is not None:
                self._change(program)
        except OSError as error:
            if error.errno not in (errno.ENOLINK, errno.ENODEV):
                raise HostError.from_oserror(f"program of interface {self.ifindex}", error) from error

    def close(self) -> None:
        """Detach, at once: others may hold the link still, a plug that is about to end or the keeper of one."""
        if self.fd >= 0:
            with suppress(OSError):  # of kernels before 5.9, or the device is gone
                bpf_link.detach(self.fd)
            os.close(self.fd)
            self.fd = -1
        if self._undo is not None:
            undo, self._undo = self._undo, None
            undo()


def is_xdp(point: str) -> bool:
    """Whether an attach point is one of XDP."""
    return point.endswith("_xdp")


def xdp_flags(native: bool) -> int:
    """The mode, as attaching wants it."""
    return bpf_link.XDP_FLAGS_DRV_MODE if native else bpf_link.XDP_FLAGS_SKB_MODE


def _attach_type(point: str) -> int:
    if is_xdp(point):
        return bpf_link.ATTACH_XDP
    return bpf_link.ATTACH_TCX_EGRESS if point.endswith("_egress") else bpf_link.ATTACH_TCX_INGRESS


def _tag(fd: int) -> str:
    """The kernel's digest of a program's instructions, or of the program's behind a link; where it tells none, a text
    that is equal to no other.
    """
    with suppress(OSError):
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
            if line.startswith("prog_tag:"):
                return line.split()[1]
    return f"unknown {fd}"


_EXPENDABLE = ("PERCPU_ARRAY", "LRU_HASH")
_LATER = ("vlans",)
"""Maps that the first versions did not have, nor anything to put into them."""


def _create(definition: abi.MapDefinition) -> bpf_map.Map:
    one = definition
    return bpf_map.Map.create(one.name, one.kind, one.key, one.value, one.entries, one.flags)


class Dataplane:
    """All maps of one daemon, and the programs over them."""

    def __init__(self, maps: dict[str, bpf_map.Map]) -> None:
        self.maps = maps
        self.features = Features()
        self.programs = Programs(maps, self.features)
        self.activated = False
        self.observed: Programs | None = None
        """The observed build, while somebody watches; made and closed by :mod:`vdexdp.control.observe`."""

    @classmethod
    def create(cls) -> Dataplane:
        """New, empty maps.  Raises PrivilegeError or HostError."""
        maps: dict[str, bpf_map.Map] = {}
        try:
            for definition in abi.MAPS.values():
                maps[definition.name] = _create(definition)
        except OSError as error:
            for one in maps.values():
                one.close()
            raise denied(error) from error
        return cls(maps)

    @classmethod
    def adopt(cls, map_fds: Mapping[str, int]) -> Dataplane:
        """Goes on with existing maps and takes over their descriptors.

        A map that only counts or can be learnt again, or that is for what an older version did not have, may be missing
        and is made anew.  Raises HostError where the maps are not ours, or of another layout.
        """
        maps: dict[str, bpf_map.Map] = {}
        for definition in abi.MAPS.values():
            if definition.name not in map_fds and (definition.kind in _EXPENDABLE or definition.name in _LATER):
                try:
                    maps[definition.name] = _create(definition)
                except OSError as error:
                    raise denied(error) from error
                continue
            fd = map_fds.get(definition.name, -1)
            one = bpf_map.Map(fd, definition.key, definition.value, percpu=definition.percpu)
            try:
                info = bpf_map.info_of(fd)
            except OSError as error:
                raise HostError.from_oserror(f"map {definition.name}", error) from error
            found = (info.type, info.key_size, info.value_size, info.max_entries)
            expected = (
                bpf_map.MAP_TYPES[definition.kind],
                ctypes.sizeof(definition.key),
                ctypes.sizeof(definition.value),
                definition.entries,
            )
            if found != expected:
                raise HostError(
                    f"map {definition.name}",
                    "has another layout than this version's",
                    "unplug everything and start afresh",
                )
            maps[definition.name] = one
        return cls(maps)

    @property
    def active(self) -> Programs:
        """The build that is put behind links now."""
        return self.observed or self.programs

    def prepare(self, points: Iterable[str] = ()) -> None:
        """Loads the programs that every daemon needs, and those for these attach points; see :class:`Programs`."""
        self.active.prepare(points)
        if not self.activated:
            self.programs.activate()
            self.activated = True

    def program(self, point: str) -> int:
        """The loaded program's descriptor."""
        self.prepare((point,))
        return self.active[point]

    def attach(self, ifindex: int, point: str, *, xdp_native: bool = True) -> Link:
        """Attaches by a link; raises KernelFeatureError or HostError, with nothing changed."""
        flags = 0
        if is_xdp(point):
            flags = xdp_flags(xdp_native)
        elif point.startswith("vlan_"):
            flags = bpf_link.TCX_BEFORE  # of an uplink's, too: a tap can be that for what comes out of its port
        try:
            return Link(bpf_link.create(self.program(point), ifindex, _attach_type(point), flags), point, ifindex)
        except OSError as error:
            if error.errno == errno.EINVAL and not self.has_links(point):
                raise KernelFeatureError(f"interface {ifindex}", "this kernel has no links for that") from error
            if is_xdp(point):
                raise xdp_refused(ifindex, error.errno or 0) from error
            raise HostError.from_oserror(f"interface {ifindex}", error) from error

    def has_links(self, point: str) -> bool:
        """Whether this kernel holds programs of this kind by links."""
        return self.features.xdp_link if is_xdp(point) else self.features.tcx

    def replace(self, link_fd: int, point: str) -> bool:
        """Puts this version's program behind an existing link, without losing a frame.

        False where it is there already.  Raises HostError.
        """
        program = self.program(point)
        if _tag(program) == _tag(link_fd):
            return False
        try:
            bpf_link.update(link_fd, program)
            return True
        except OSError as error:
            raise HostError.from_oserror(f"link of {point}", error) from error

    def close(self) -> None:
        """Lets go of this process's descriptors; what others hold lives on."""
        self.programs.close()
        for one in self.maps.values():
            one.close()
