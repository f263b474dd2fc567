# SPDX-License-Identifier: GPL-2.0-or-later
"""libvdeslirp through ctypes: libslirp in a thread of its own, frames through a socketpair.

Facts about the library (0.1.1) that the callers of this module rest on:

* A datagram of exactly eight bytes on the socket is taken for a *pointer* to a request, and an empty one ends the
  thread: nothing shorter than an Ethernet header may ever be written to it.
* Datagrams over JUMBO bytes are cut.
* Adding a forward always seems to succeed.
* What it writes and we do not read blocks its thread, and nothing else.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_uint8, c_uint32, c_void_p
from functools import cache
from ipaddress import IPv4Address, IPv6Address

from vdexdp.errors import HostError

JUMBO = 9014
"""Bytes of the largest frame that libvdeslirp takes."""

_SONAME = "libvdeslirp.so.0"
_WITH_DEFAULTS = 1

_In6 = c_uint32 * 4  # aligned like struct in6_addr


class Config(ctypes.Structure):
    """struct SlirpConfig of libslirp.h, as far as version 1 goes; addresses are in network order.

    Later versions are longer, and the library clears as much as it knows: hence the room at the end.
    """

    _fields_ = (
        ("version", c_uint32),
        ("restricted", c_int),
        ("in_enabled", c_bool),
        ("vnetwork", c_uint32),
        ("vnetmask", c_uint32),
        ("vhost", c_uint32),
        ("in6_enabled", c_bool),
        ("vprefix_addr6", _In6),
        ("vprefix_len", c_uint8),
        ("vhost6", _In6),
        ("vhostname", c_char_p),
        ("tftp_server_name", c_char_p),
        ("tftp_path", c_char_p),
        ("bootfile", c_char_p),
        ("vdhcp_start", c_uint32),
        ("vnameserver", c_uint32),
        ("vnameserver6", _In6),
        ("vdnssearch", POINTER(c_char_p)),
        ("vdomainname", c_char_p),
        ("if_mtu", c_size_t),
        ("if_mru", c_size_t),
        ("disable_host_loopback", c_bool),
        ("enable_emu", c_bool),
        ("later", c_uint8 * 512),
    )

    def set_v4(self, field: str, address: IPv4Address) -> None:
        setattr(self, field, in_addr(address))

    def set_v6(self, field: str, address: IPv6Address) -> None:
        setattr(self, field, _In6.from_buffer_copy(address.packed))

    def set_search(self, domains: Sequence[str]) -> None:
        """The list of search domains; the structure keeps it alive."""
        self.vdnssearch = (c_char_p * (len(domains) + 1))(*(domain.encode() for domain in domains), None)


def in_addr(address: IPv4Address) -> int:
    """An address as struct in_addr holds it."""
    return int.from_bytes(address.packed, sys.byteorder)


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_SONAME)
    except OSError as error:
        raise HostError(_SONAME, "is not installed", 'install it, on Debian "apt install libvdeslirp0"') from error
    library.vdeslirp_init.argtypes = (POINTER(Config), c_int)
    library.vdeslirp_init.restype = None
    library.vdeslirp_open.argtypes = (POINTER(Config),)
    library.vdeslirp_open.restype = c_void_p
    library.vdeslirp_fd.argtypes = library.vdeslirp_close.argtypes = (c_void_p,)
    library.vdeslirp_add_fwd.argtypes = (c_void_p, c_int, c_uint32, c_int, c_uint32, c_int)
    library.vdeslirp_add_unixfwd.argtypes = (c_void_p, c_char_p, POINTER(c_uint32), c_int)
    library.vdeslirp_add_cmdexec.argtypes = (c_void_p, c_char_p, POINTER(c_uint32), c_int)
    return library


def default_config() -> Config:
    """The library's defaults.  Raises HostError where it is not installed."""
    config = Config()
    _library().vdeslirp_init(ctypes.byref(config), _WITH_DEFAULTS)
    return config


class Instance:
    """One running libslirp; ``fd`` is the socket for frames, which ``close`` closes.  Raises HostError."""

    def __init__(self, config: Config) -> None:
        self._handle: int | None = _library().vdeslirp_open(ctypes.byref(config))
        if not self._handle:
            raise HostError("slirp://", "libslirp refuses this configuration", "see the addresses and the MTU")
        self.fd: int = _library().vdeslirp_fd(self._handle)

    def forward_port(self, udp: bool, host: tuple[IPv4Address, int], guest: tuple[IPv4Address, int]) -> None:
        """From a port of the host to one of the guest; 0.0.0.0 is the first guest that DHCP has served."""
        _library().vdeslirp_add_fwd(self._handle, udp, in_addr(host[0]), host[1], in_addr(guest[0]), guest[1])

    def forward_unix(self, address: IPv4Address, port: int, path: str) -> None:
        """From a TCP port of a virtual address to a UNIX socket of the host; 0.0.0.0 is the network's number 2.4."""
        _library().vdeslirp_add_unixfwd(self._handle, path.encode(), ctypes.byref(c_uint32(in_addr(address))), port)

    def forward_command(self, address: IPv4Address, port: int, command: str) -> None:
        """From a TCP port of a virtual address to a command of the host, as ``forward_unix``."""
        _library().vdeslirp_add_cmdexec(self._handle, command.encode(), ctypes.byref(c_uint32(in_addr(address))), port)

    def close(self) -> None:
        if self._handle:
            _library().vdeslirp_close(self._handle)
            self._handle = None
