# SPDX-License-Identifier: GPL-2.0-or-later
"""What this kernel can do, found by doing it, in a network namespace that is thrown away.

The probing child unshares its network namespace, makes a veth pair there, loads every program and attaches it; the
result comes back through a pipe.  Nothing in the caller's namespace is touched.  Needs root.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

from vdexdp.control.dataplane import Dataplane
from vdexdp.control.features import TABLE
from vdexdp.control.host import Host
from vdexdp.control.netlink import XDP_BASIC, XDP_REDIRECT, Netlink
from vdexdp.errors import HostError, KernelFeatureError, VdexdpError

CLONE_NEWNET: Final = 0x40000000
POINTS: Final = ("port_ingress", "port_egress", "uplink_ingress", "exception_ingress", "port_xdp", "uplink_xdp")


@dataclass(frozen=True)
class Check:
    """One finding.  ``ok`` is None where something is missing that only costs speed."""

    name: str
    ok: bool | None
    detail: str
    hint: str = ""


def probe_kernel() -> list[Check]:
    """Try everything in a child.  Raises HostError when the child can't even begin."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(CLONE_NEWNET):
                raise HostError.from_oserror("network namespace", OSError(ctypes.get_errno(), ""))
            found = [asdict(check) for check in _checks()]
            with os.fdopen(writer, "w") as out:
                json.dump(found, out)
            status = 0
        except VdexdpError as error:
            os.write(writer, json.dumps([asdict(Check("probing", False, str(error)))]).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(child, 0)
    if not said:
        raise HostError("probing", "the probing process died", "run with -v")
    return [Check(**one) for one in json.loads(said)]


def _checks() -> list[Check]:
    checks: list[Check] = []
    with Netlink() as netlink:
        veth = netlink.make_veth("vdxprobe0", "vdxprobe1")
        try:
            dataplane = Dataplane.create()
        except VdexdpError as error:
            return [Check("bpf(2)", False, error.cause, error.hint)]
        host = Host(dataplane, netlink)
        checks.append(Check("bpf(2)", True, "maps of every kind that is used can be made"))
        for point in POINTS:
            begin = time.monotonic()
            try:
                dataplane.program(point)
                took = (time.monotonic() - begin) * 1000
                checks.append(Check(f"program {point}", True, f"the verifier took it, in {took:.0f} ms"))
            except VdexdpError as error:
                only_speed = None if point.endswith("_xdp") and isinstance(error, KernelFeatureError) else False
                checks.append(Check(f"program {point}", only_speed, error.cause, error.hint))
                return checks
        checks += [_feature(name, there) for name, there in dataplane.features.all().items()]
        checks.append(_try("native XDP on veth", lambda: host.attach(veth, "port_xdp").close()))
        checks.append(_try("generic XDP", lambda: host.attach(veth, "port_xdp", xdp_native=False).close()))
        checks.append(_try("XDP redirect map", lambda: dataplane.maps["tx_ports"].update(1, veth)))
        if not dataplane.features.tcx:
            checks.append(_try("clsact", lambda: host.attach(veth, "port_ingress").close()))
        dataplane.close()
    return checks


def _feature(name: str, there: bool) -> Check:
    row = TABLE[name]
    return Check(row.title, True if there else None, row.use if there else f"missing: {row.instead}")


def _try(name: str, action: Callable[[], None]) -> Check:
    try:
        action()
    except VdexdpError as error:
        return Check(name, None, error.cause, error.hint)
    except OSError as error:
        return Check(name, None, os.strerror(error.errno or 0))
    return Check(name, True, "works")


def capabilities() -> set[str]:
    """Which of the capabilities that the daemon needs this process has."""
    bits = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
    effective = 0
    with suppress(OSError), open("/proc/self/status") as file:
        effective = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    return {name for name, bit in bits.items() if effective >> bit & 1}


def probe_drivers() -> list[Check]:
    """What the kernel says of XDP for each driver of this namespace's interfaces.  Needs no privilege."""
    drivers: dict[str, tuple[list[str], int | None]] = {}
    with Netlink() as netlink:
        for link in netlink.links():
            if link.ethernet and link.name != "lo":
                names, _ = drivers.setdefault(link.driver or link.kind or "?", ([], netlink.xdp_features(link.index)))
                names.append(link.name)
    return [_driver(driver, names, features) for driver, (names, features) in sorted(drivers.items())]


def _driver(driver: str, names: list[str], features: int | None) -> Check:
    which = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    if features is None:
        return Check(f"XDP of {driver}", None, f"{which}: this kernel does not tell; tried where hook=xdp asks for it")
    if features & (XDP_BASIC | XDP_REDIRECT) == XDP_BASIC | XDP_REDIRECT:
        return Check(f"XDP of {driver}", True, f"{which}: native")
    return Check(f"XDP of {driver}", None, f"{which}: generic only")
