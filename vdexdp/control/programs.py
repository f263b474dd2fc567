# SPDX-License-Identifier: GPL-2.0-or-later
"""One build of the kernel programs, loaded over maps: the normal one, or the one that is observed (bpf/observe.h)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Final

from vdexdp.control import abi, bpf_map, bpf_prog, bytecode
from vdexdp.control.features import XDP_HAS_FRAGS, Features
from vdexdp.errors import HostError, PrivilegeError

_PROGRAM_AT: Final = {"port_ingress": "port_tc", "port_egress": "port_tc"}
"""Attach points whose program has another name: a port's own kind tells it where it runs."""

_JUMPS: Final = {
    "flood_all": abi.K["JUMP_FLOOD"],
    "flood_group": abi.K["JUMP_GROUP"],
    "port_tc": abi.K["JUMP_BOUNCE"],
}
"""Programs that others continue in, and their places in the map ``jumps``."""

LOADERS: Final = 4
"""Programs that are verified at once."""


def denied(error: OSError) -> HostError:
    """What bpf(2) said."""
    if error.errno == errno.EPERM:
        return PrivilegeError(
            "bpf(2)", "not permitted", "run as root, or with CAP_BPF and CAP_NET_ADMIN; --accel off needs neither"
        )
    return HostError.from_oserror("bpf(2)", error)


class Programs:
    """By attach point.  ``maps`` stay the caller's.

    ``features`` are the kernel's: programs are loaded without what it lacks.
    """

    def __init__(self, maps: Mapping[str, bpf_map.Map], features: Features, prefix: str = "") -> None:
        self.maps = maps
        self.features = features
        self.prefix = prefix
        self._fds: dict[str, int] = {}

    def prepare(self, points: Iterable[str] = ()) -> None:
        """Loads ``bytecode.COMMON`` and the programs for these attach points at once (compiling in parallel what is not
        cached).

        Either all or none: programs of two versions are not mixed.
        """
        wanted = dict.fromkeys((*bytecode.COMMON, *(_PROGRAM_AT.get(point, point) for point in points)))
        missing = {self.prefix + name: name for name in wanted if name not in self._fds}
        if not missing:
            return
        fds = {name: one.fd for name, one in self.maps.items()}
        images = bytecode.images(missing)
        try:
            substitutes, frags = self.features.substitutes, XDP_HAS_FRAGS if self.features.frags else 0
        except OSError as error:
            raise denied(error) from error

        def load(name: str) -> int:
            kind, code = bytecode.PROGRAMS[name].kind, bytecode.relocate(images[name], fds, substitutes)
            return bpf_prog.load(kind, name, code, prog_flags=frags if kind == "xdp" else 0)

        loaded: dict[str, int] = {}
        # The verifier walks a hundred thousand instructions of the larger ones, and takes several programs at once.
        with ExitStack() as undo, ThreadPoolExecutor(LOADERS) as pool:
            results = [(missing[name], pool.submit(load, name)) for name in images]
            for name, result in results:
                if result.exception() is None:
                    loaded[name] = result.result()
                    undo.callback(os.close, loaded[name])
            try:
                for _, result in results:
                    result.result()
            except OSError as error:
                raise denied(error) from error
            undo.pop_all()
        self._fds |= loaded

    def activate(self) -> None:
        """Have others continue in this build's programs.  Raises OSError."""
        for name, place in _JUMPS.items():
            self.maps["jumps"].update(place, self._fds[name])

    def __getitem__(self, point: str) -> int:
        """The loaded program's descriptor."""
        self.prepare((point,))
        return self._fds[_PROGRAM_AT.get(point, point)]

    def close(self) -> None:
        """Lets go of this process's descriptors; what is attached lives on."""
        for fd in self._fds.values():
            with suppress(OSError):
                os.close(fd)
        self._fds.clear()
