# SPDX-License-Identifier: GPL-2.0-or-later
"""From a VNL to its plugin.

A scheme is looked for in three places, the cheapest first: the built-in table (its module is imported when the scheme
is first used, never before), the entry points ``vdexdp.plugins`` of installed packages (name = scheme, value = the
plugin class), and stock libvdeplug's C modules (``libvdeplug_SCHEME.so``).  The foreground ``vde_plug`` imports two
plugin modules, and scans neither the installed packages nor the library directories unless a scheme asks for it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from vdexdp.errors import HostError, VdexdpError, VnlError
from vdexdp.plugins.base import KernelEnd, NoKernelEnd, OpenContext, Plugin, Stream
from vdexdp.vnl import parse_body, resolve, split, suggest

ENTRY_POINTS = "vdexdp.plugins"

BUILTIN = {
    scheme: f"vdexdp.plugins.{scheme}:{scheme.capitalize()}Plugin"
    for scheme in (
        "vde",
        "hub",
        "switch",
        "multi",
        "bonding",
        "tap",
        "macvtap",
        "netdev",
        "vxvde",
        "vxvdex",
        "vxlan",
        "ptp",
        "udp",
        "cmd",
        "seqpacket",
        "null",
        "stream",
        "slirp",
        "vlan",
        "agno",
        "wirefilter",
        "restart",
        "pcap",
    )
}
"""Built-in schemes, in the order in which the documentation lists them."""

STDIO = "-"
"""The VNL of a vdestream on standard input and output; for the tools, a missing VNL means the same."""

_plugins: dict[str, Plugin] = {}


@dataclass(frozen=True)
class End:
    """One parsed VNL: its text, its plugin and the plugin's spec."""

    vnl: str
    plugin: Plugin
    spec: Any

    def open(self, context: OpenContext | None = None) -> Stream:
        """The userspace end.  Raises HostError."""
        return open_stream(self, context)

    def kernel_end(self) -> KernelEnd | NoKernelEnd:
        """What the daemon has to know of this end; may look at the system, never changes it."""
        return self.plugin.kernel_end(self.spec)


def get(scheme: str) -> Plugin:
    """The plugin of ``scheme``.  Raises VnlError where there is none, HostError where it is there but does not load."""
    plugin = _plugins.get(scheme)
    if plugin is None:
        plugin = _builtin(scheme) or _entry_point(scheme) or _c_module(scheme)
        if plugin is None:
            raise VnlError(f"{scheme}://", "unknown scheme", suggest(scheme, schemes()))
        _plugins[scheme] = plugin
    return plugin


def schemes() -> tuple[str, ...]:
    """The schemes known by name: built in, then those of installed packages.  A C module is found by asking for it."""
    third_party = sorted({point.name for point in _entry_points()} - BUILTIN.keys())
    return (*BUILTIN, *third_party)


def parse(vnl: str) -> End:
    """Parse a VNL completely; ``-`` is the vdestream on stdin and stdout.

    Reads at most the file that the VNL itself names, changes nothing.  Raises VnlError, and HostError where that file
    can't be read.
    """
    whole = "stream://" if vnl == STDIO else resolve(vnl)
    scheme, body = split(whole)
    plugin = get(scheme)
    return End(vnl or whole, plugin, plugin.parse(parse_body(body, plugin.grammar, plugin.options, scheme)))


def open_stream(end: End, context: OpenContext | None = None) -> Stream:
    """Open the userspace end of a parsed VNL.  Raises HostError."""
    try:
        return end.plugin.open(end.spec, context or OpenContext())
    except VdexdpError:
        raise
    except OSError as error:
        raise HostError.from_oserror(end.vnl, error) from error


def _builtin(scheme: str) -> Plugin | None:
    target = BUILTIN.get(scheme)
    return _load(scheme, target) if target else None


def _entry_points() -> Any:
    from importlib.metadata import entry_points

    return entry_points(group=ENTRY_POINTS)


def _entry_point(scheme: str) -> Plugin | None:
    for point in _entry_points():
        if point.name == scheme:
            return _load(scheme, point.value)
    return None


def _c_module(scheme: str) -> Plugin | None:
    from vdexdp.plugins.cmodule import find

    return find(scheme)


def _load(scheme: str, target: str) -> Plugin:
    module, _, name = target.partition(":")
    try:
        plugin = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise HostError(f"{scheme}://", f"its plugin {target} does not load: {error}") from error
    if not isinstance(plugin, Plugin):
        raise HostError(f"{scheme}://", f"{target} is not a vdexdp.plugins.base.Plugin")
    return plugin
