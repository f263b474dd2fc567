# SPDX-License-Identifier: GPL-2.0-or-later
"""agno: libvdeplug_agno's encryption of Ethernet frames.  For compatibility only.

It hides payloads from eavesdroppers without the key.  It does *not* authenticate: addresses travel in the clear,
whoever can change a frame on its way can change bits of its payload unnoticed, and within the time window any frame can
be replayed.

A frame becomes: its two addresses, in the clear; an outer ethertype; one block of AES-128-ECB with the header

==== =================================================
2    the frame's ethertype, big-endian
1    bytes of padding, 0 to 15
1    0
4    ``agno``
4    time in seconds since 1970, big-endian
4    random bytes
==== =================================================

and the payload, padded with zeros to whole blocks, in AES-128-CBC.  The initialization vector is the header as
*plaintext*.

Underlays that pad short frames are harmless: an incomplete last block is ignored.  Time and random bytes come from the
caller.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Literal

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB

from vdexdp.wire.ethernet import HEADER_SIZE, Buffer

ETHERTYPE = 0xA6DE
BLOCK = 16

_MAGIC = b"\0agno"
_EARLIEST, _LATEST = -1, 2

OuterType = int | Literal["copy", "rand"]


class Rejected(StrEnum):
    """Why a frame was not decrypted."""

    SHORT = "agno-short"  # no room for the header, or less payload than padding
    KEY = "agno-key"  # encrypted with another key, or not at all
    TIME = "agno-time"  # the clocks differ, or a replay


class _Chain:
    """CBC with a new initialization vector per message over one context.

    A context per frame costs three times what the encryption does.  CBC xors each plaintext block with the ciphertext
    block before it; where a message begins, that one (the last of the message before) is xored out and the vector in.
    """

    def __init__(self, context: CipherContext) -> None:
        self._update = context.update
        self._last = 0

    def encrypt(self, vector: bytes, plain: bytes) -> bytes:
        """``plain`` is whole blocks."""
        if not plain:
            return b""
        encrypted = self._update(self._swap(vector, plain))
        self._last = int.from_bytes(encrypted[-BLOCK:])
        return encrypted

    def decrypt(self, vector: bytes, encrypted: bytes) -> bytes:
        """``encrypted`` is whole blocks."""
        if not encrypted:
            return b""
        plain = self._swap(vector, self._update(encrypted))
        self._last = int.from_bytes(encrypted[-BLOCK:])
        return plain

    def _swap(self, vector: bytes, message: bytes) -> bytes:
        first = int.from_bytes(message[:BLOCK]) ^ int.from_bytes(vector) ^ self._last
        return first.to_bytes(BLOCK) + message[BLOCK:]


class Codec:
    """One key, and the ethertype to be seen outside: a number, "copy" for the frame's own, "rand" for a random one."""

    def __init__(
        self,
        key: bytes,
        ethertype: OuterType = ETHERTYPE,
        *,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        algorithm = AES(key)
        ecb = Cipher(algorithm, ECB())
        self._encrypt_header = ecb.encryptor().update
        self._decrypt_header = ecb.decryptor().update
        cbc = Cipher(algorithm, CBC(bytes(BLOCK)))
        self._encrypt_chain = _Chain(cbc.encryptor())
        self._decrypt_chain = _Chain(cbc.decryptor())
        self._ethertype = ethertype
        self._clock = clock
        self._random = random

    def encrypt(self, frame: Buffer) -> bytes:
        """The frame to send for ``frame``, which has at least HEADER_SIZE bytes."""
        payload = bytes(frame[HEADER_SIZE:])
        padding = -len(payload) % BLOCK
        now = int(self._clock()) & 0xFFFFFFFF
        header = b"".join((frame[12:14], bytes((padding,)), _MAGIC, now.to_bytes(4, "big"), self._random(4)))
        encrypted = self._encrypt_chain.encrypt(header, payload + bytes(padding))
        return b"".join((frame[:12], self._outer_type(frame), self._encrypt_header(header), encrypted))

    def decrypt(self, frame: Buffer) -> bytes | Rejected:
        """The frame inside ``frame``, or why there is none."""
        start = HEADER_SIZE + BLOCK
        if len(frame) < start:
            return Rejected.SHORT
        header = self._decrypt_header(bytes(frame[HEADER_SIZE:start]))
        # libvdeplug_agno does not look at the zero in front of "agno", nor at the upper half of the padding.
        if header[4:8] != _MAGIC[1:]:
            return Rejected.KEY
        age = (int(self._clock()) - int.from_bytes(header[8:12], "big") + 2**31) % 2**32 - 2**31
        if not _EARLIEST <= age <= _LATEST:
            return Rejected.TIME
        end = len(frame) - (len(frame) - start) % BLOCK
        size = end - start - (header[2] & 0xF)
        if size < 0:
            return Rejected.SHORT
        payload = self._decrypt_chain.decrypt(header, bytes(frame[start:end]))
        return b"".join((frame[:12], header[:2], payload[:size]))

    def _outer_type(self, frame: Buffer) -> bytes:
        if self._ethertype == "copy":
            return bytes(frame[12:14])
        if self._ethertype == "rand":
            # From 0x600, as smaller numbers mean lengths, to 0xfffe.
            return (0x600 + int.from_bytes(self._random(2), "big") % 0xF9FF).to_bytes(2, "big")
        return self._ethertype.to_bytes(2, "big")


def parse_key(text: str) -> tuple[bytes, bool]:
    """The 16 bytes of a key file: its first 32 hex digits, whatever is between them; missing ones are 0.

    libvdeplug_agno takes an upper-case ``A`` for 1, so that is what it means here; the second result says whether that
    happened.  Raises ValueError where there are less than two digits.
    """
    digits = [char for char in text if char in "0123456789abcdefABCDEF"][:32]
    if len(digits) < 2:
        raise ValueError("there is no key in it: 32 hex digits are needed")
    plain = "".join(digits).replace("A", "1").ljust(32, "0")
    return bytes.fromhex(plain), "A" in digits


def parse_ethertype(text: str) -> OuterType:
    """The value of ``ethtype=``: copy, ipv4, ipv6, rand, or a number from 0x600 to 0xfffe; "" and 0 mean ETHERTYPE.

    Raises ValueError.
    """
    if text in ("copy", "rand"):
        return "copy" if text == "copy" else "rand"
    named = {"": ETHERTYPE, "ipv4": 0x0800, "ipv6": 0x86DD}.get(text)
    if named is not None:
        return named
    try:
        value = int(text, 16 if text[:2] in ("0x", "0X") else 10)
    except ValueError:
        raise ValueError(f'"{text}" is no ethertype: give copy, ipv4, ipv6, rand or a number') from None
    if value and not 0x600 <= value < 0xFFFF:
        raise ValueError(f"ethertype {text} is not between 0x600 and 0xfffe")
    return value or ETHERTYPE
