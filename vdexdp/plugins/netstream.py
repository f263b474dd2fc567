# SPDX-License-Identifier: GPL-2.0-or-later
"""An interface as a port in userspace: a packet socket for input, another for output.

Frames that come in over the interface are copied to us; what we send leaves through it and is not seen again
(PACKET_IGNORE_OUTGOING).  A copy is as the driver delivered it, which is not yet what was on the wire:

* the VLAN tag has been moved out of the frame, and comes back from the ancillary data (PACKET_AUXDATA);
* checksums may be missing and TCP may be in one piece of 64 kB, which the virtio header in front tells
  (PACKET_VNET_HDR); ``vdexdp.wire.offload`` finishes that.

Because they are copies, the host's own stack goes on seeing the frames, too.  Give the interface no address, as one
would with a port of a bridge; in the kernel path the frames are taken, not copied.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque

from vdexdp.errors import HangUp, HostError, PrivilegeError
from vdexdp.plugins.base import BATCH, FRAME_MAX, FRAME_MIN, Batch, Stream
from vdexdp.plugins.mmsg import FATAL, Vector, Writer, overruns, receive, set_receive_buffer
from vdexdp.wire.offload import VNET_HEADER_SIZE, Unsupported, finish, parse_vnet_header

# linux/if_packet.h
_SOL_PACKET = 263
_ADD_MEMBERSHIP = 1
_AUXDATA = 8
_VNET_HDR = 15
_IGNORE_OUTGOING = 23
_MR_PROMISC = 1
_STATUS_VLAN_VALID = 0x10
_STATUS_VLAN_TPID_VALID = 0x40

_ETH_P_ALL = 3
_ARPHRD_ETHER = (1, 772)  # Ethernet, and loopback, which has its frames
_RCVBUF = 4 << 20

_ROW = 65536 + 128  # the largest super-packet with its headers
_CONTROL = 40  # CMSG_SPACE(sizeof(struct tpacket_auxdata))
_AUX = struct.Struct("=16xIIIHHHH4x")  # behind a cmsghdr


class NetdevStream(Stream):
    """The wire side of one interface.  Raises HostError."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._pending: deque[bytearray] = deque()
        self._vector = Vector(bytearray(BATCH * _ROW), _ROW, length=_ROW, header=VNET_HEADER_SIZE, control=_CONTROL)
        self._rows = memoryview(self._vector.memory)
        self._sockets: list[socket.socket] = []
        try:
            self._index = socket.if_nametoindex(name)
            self._input = self._open_input()
            output = self._socket(0)
        except OSError as error:
            self.close()
            raise self._explain(error) from error
        except HostError:
            self.close()
            raise
        self._writer = Writer(output.fileno(), self.drops, fatal=FATAL | {errno.ENXIO, errno.ENODEV})

    def _socket(self, protocol: int) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        self._sockets.append(made)
        if protocol:
            made.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
            made.setsockopt(_SOL_PACKET, _AUXDATA, 1)
            made.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        made.bind((self.name, protocol))
        return made

    def _open_input(self) -> socket.socket:
        made = self._socket(_ETH_P_ALL)
        if made.getsockname()[3] not in _ARPHRD_ETHER:
            raise HostError(self.name, "is not an Ethernet interface", "use a tap, a veth, a bridge port or a NIC")
        request = struct.pack("=iHH8x", self._index, _MR_PROMISC, 0)
        made.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, request)
        set_receive_buffer(made, _RCVBUF)
        return made

    def readers(self) -> tuple[int, ...]:
        return (self._input.fileno(),)

    def timeout(self) -> float | None:
        return 0.0 if self._pending else None

    def recv(self, batch: Batch) -> None:
        self._deliver(batch)
        if batch.full:
            return
        vector = self._vector
        vector.reset()
        try:
            count = receive(self._input.fileno(), vector)
        except OSError as error:
            self._failed(error)
            return
        if count == BATCH and (lost := overruns(self._input)):
            self.drops["overrun"] = lost
        for index, size in enumerate(vector.received(0, count)):
            self._take(batch, index, size - VNET_HEADER_SIZE)
        self._deliver(batch)

    def _take(self, batch: Batch, index: int, size: int) -> None:
        """One received frame, into the batch if it can be, else with what it becomes into the queue."""
        vector, start = self._vector, index * _ROW
        missing = parse_vnet_header(vector.headers[index * VNET_HEADER_SIZE : (index + 1) * VNET_HEADER_SIZE])
        status, length, _, _, _, tci, tpid = _AUX.unpack_from(vector.controls, index * _CONTROL)
        if size < FRAME_MIN or length > size:
            self.drops["runt" if size < FRAME_MIN else "too-big"] += 1
            return
        frame = self._rows[start : start + size]
        if missing is None and not status & _STATUS_VLAN_VALID and size <= FRAME_MAX:
            if self._pending or batch.full:
                self._pending.append(bytearray(frame))
            else:
                batch.append(frame)
            return
        tag = b""
        if status & _STATUS_VLAN_VALID:
            tag = struct.pack("!HH", tpid if status & _STATUS_VLAN_TPID_VALID else 0x8100, tci)
        whole = bytearray(frame)
        try:
            for finished in finish(whole, missing) if missing is not None else (whole,):
                finished[12:12] = tag
                if len(finished) <= FRAME_MAX:
                    self._pending.append(finished)
                else:
                    self.drops["too-big"] += 1
        except Unsupported as kind:
            self.drops[str(kind)] += 1

    def _deliver(self, batch: Batch) -> None:
        pending = self._pending
        while pending and not batch.full:
            batch.append(pending.popleft())

    def send(self, batch: Batch, start: int = 0) -> int:
        try:
            return self._writer.send(batch, start)
        except OSError as error:
            self._failed(error)
            return batch.count - start

    def fault(self) -> str:
        return f'{self.name} is down; "ip link set {self.name} up"' if self._is_down() else ""

    def close(self) -> None:
        while self._sockets:
            self._sockets.pop().close()

    def _is_down(self) -> bool:
        try:
            with open(f"/sys/class/net/{self.name}/flags", encoding="ascii") as file:
                return not int(file.read(), 16) & 1
        except OSError:
            return True

    def _failed(self, error: OSError) -> None:
        """Nothing, if the interface is merely down; it will come back.  Raises HangUp if it is gone, HostError."""
        try:
            same = socket.if_indextoname(self._index) is not None
        except OSError:
            same = False
        if not same:
            raise HangUp(f"{self.name} was deleted") from error
        if error.errno != errno.ENETDOWN:
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> HostError:
        if error.errno in (errno.EPERM, errno.EACCES):
            return PrivilegeError(self.name, "a packet socket needs CAP_NET_RAW", "run as root")
        if error.errno in (errno.ENODEV, errno.ENXIO):
            return HostError(self.name, "no such interface", 'see "ip link"')
        return HostError.from_oserror(self.name, error)
