# SPDX-License-Identifier: GPL-2.0-or-later
"""Filter expressions in libpcap's language, pcap-filter(7), by libpcap itself."""

from __future__ import annotations

import ctypes
from typing import Any, Final

from vdexdp.errors import HostError, RequestError
from vdexdp.wire.pcapng import LINKTYPE_ETHERNET

_SNAP: Final = 1 << 18
_NETMASK_UNKNOWN: Final = 0xFFFFFFFF


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint), ("instructions", ctypes.c_void_p)]


class _Header(ctypes.Structure):
    _fields_ = [
        ("seconds", ctypes.c_long),
        ("micros", ctypes.c_long),
        ("caught", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    ]


class Filter:
    """A compiled expression for Ethernet frames."""

    def __init__(self, expression: str) -> None:
        """Raises RequestError where libpcap does not understand it, HostError where there is no libpcap."""
        try:
            lib = ctypes.CDLL("libpcap.so.0.8")
        except OSError as error:
            hint = 'install it with "apt-get install libpcap0.8", or use --mac, --ethertype, --vlan, --l4-port'
            raise HostError("libpcap.so.0.8", "not found", hint) from error
        lib.pcap_open_dead.restype = ctypes.c_void_p
        lib.pcap_compile.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int]
        lib.pcap_compile.argtypes += [ctypes.c_uint32]
        lib.pcap_geterr.argtypes = lib.pcap_close.argtypes = [ctypes.c_void_p]
        lib.pcap_geterr.restype = ctypes.c_char_p
        lib.pcap_offline_filter.argtypes = [ctypes.POINTER(_Program), ctypes.POINTER(_Header), ctypes.c_char_p]
        self._lib: Any = lib
        self._program = _Program()
        handle = lib.pcap_open_dead(LINKTYPE_ETHERNET, _SNAP)
        try:
            if lib.pcap_compile(handle, ctypes.byref(self._program), expression.encode(), 1, _NETMASK_UNKNOWN):
                cause = lib.pcap_geterr(handle).decode(errors="replace")
                raise RequestError(f'filter "{expression}"', cause, "see pcap-filter(7)")
        finally:
            lib.pcap_close(handle)

    def takes(self, data: bytes, length: int) -> bool:
        """Whether a frame of ``length`` bytes, of which ``data`` was captured, passes."""
        header = _Header(0, 0, len(data), length)
        return bool(self._lib.pcap_offline_filter(ctypes.byref(self._program), ctypes.byref(header), data))
