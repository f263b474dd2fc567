# SPDX-License-Identifier: GPL-2.0-or-later
"""``agno://[KEYFILE][ethtype=TYPE]{VNL}``: frames encrypted in front of any other end, as stock libvdeplug_agno does.

The format, and what it does not protect from, is in :mod:`vdexdp.wire.agno`.  Opening such an end says once on stderr
that it is not authenticated.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdexdp.errors import HostError, VnlError
from vdexdp.plugins import registry
from vdexdp.plugins.base import Buffer, NoKernelEnd, OpenContext, Option, Parsed, Plugin, Stream
from vdexdp.plugins.wrapper import RewriterStream

if TYPE_CHECKING:  # importing these loads the cipher library, which parsing does not need
    from vdexdp.wire.agno import Codec, OuterType

DEFAULT_KEYFILE = "~/.vde_agno_key"

_KEYFILE_MAX = 65536

_warned: set[str] = set()


@dataclass(frozen=True)
class AgnoSpec:
    """``keyfile`` is absolute, or begins with ``~``: the caller's home directory."""

    keyfile: str
    ethertype: OuterType
    inner: registry.End


class AgnoStream(RewriterStream):
    """The inner end behind a cipher."""

    def __init__(self, inner: Stream, codec: Codec) -> None:
        super().__init__(inner)
        self._encrypt = codec.encrypt
        self._decrypt = codec.decrypt

    def outward(self, frame: Buffer) -> Buffer:
        return self._encrypt(frame)

    def inward(self, frame: Buffer) -> Buffer | None:
        plain = self._decrypt(frame)
        if isinstance(plain, bytes):
            return plain
        self.drops[plain.value] += 1
        return None

    def fault(self) -> str:
        wrong_key, wrong_time = self.drops["agno-key"], self.drops["agno-time"]
        if wrong_key or wrong_time:
            return f"{wrong_key} frames with another key, {wrong_time} with another time (or replayed)"
        return super().fault()


class AgnoPlugin(Plugin):
    scheme = "agno"
    grammar = "nested"
    summary = "encryption, not authenticated, in front of another end"
    address = "[keyfile]"
    example = "agno:///etc/vde.key[ethtype=ipv4]{vde:///tmp/sw}"
    options = (
        Option("ethtype", "visible ethertype: copy, ipv4, ipv6, rand, or a number from 0x600", default="0xa6de"),
    )

    def parse(self, parsed: Parsed) -> AgnoSpec:
        if importlib.util.find_spec("cryptography") is None:
            hint = 'install it with "apt-get install python3-cryptography"'
            raise HostError(parsed.vnl, "the Python package cryptography is missing", hint)
        from vdexdp.wire.agno import parse_ethertype

        if not parsed.nested:
            raise VnlError(parsed.vnl, "no VNL in braces", f"write for instance {self.example}")
        if parsed.address and parsed.address[0] not in "~/":
            raise VnlError(
                parsed.vnl, f'the key file "{parsed.address}" is a relative path', "write it from / or from ~/ on"
            )
        try:
            ethertype = parse_ethertype(parsed.options.get("ethtype", ""))
        except ValueError as error:
            raise parsed.error(
                "ethtype", "is no ethertype", "give copy, ipv4, ipv6, rand, or 0x600 to 0xfffe"
            ) from error
        return AgnoSpec(parsed.address or DEFAULT_KEYFILE, ethertype, registry.parse(parsed.nested))

    def open(self, spec: AgnoSpec, context: OpenContext) -> AgnoStream:
        from vdexdp.wire.agno import Codec

        codec = Codec(read_key(spec.keyfile), spec.ethertype)
        inner = spec.inner.open(context)
        _warn("agno: encrypted, but not authenticated: who can change frames on their way can change their contents")
        return AgnoStream(inner, codec)

    def kernel_end(self, spec: AgnoSpec) -> NoKernelEnd:
        return NoKernelEnd("agno:// encrypts in userspace")


def read_key(path: str) -> bytes:
    """The 16 bytes of the key in ``path``; a leading ``~`` is the home directory of the effective user.

    Raises HostError.
    """
    from vdexdp.wire.agno import parse_key

    if path.startswith("~"):
        path = _home() + "/" + path[1:].lstrip("/")
    try:
        with open(path, encoding="latin-1") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_KEYFILE_MAX)
    except OSError as error:
        hint = (
            'make a key with "(umask 77; openssl rand -hex 16 > FILE)"' if isinstance(error, FileNotFoundError) else ""
        )
        raise HostError.from_oserror(path, error, hint) from error
    try:
        key, capital = parse_key(text)
    except ValueError as error:
        raise HostError(path, str(error)) from error
    if capital:
        _warn(f'{path}: an "A" in the key counts as 1, as in libvdeplug_agno; write "a"')
    if mode & 0o044:
        _warn(f'{path}: other users can read this key; "chmod 600 {path}"')
    return key


def _home() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        raise HostError("~", "your user id has no home directory", "give the key file's full path") from None


def _warn(text: str) -> None:
    """Say it once per process."""
    if text not in _warned:
        _warned.add(text)
        print(text, file=sys.stderr)
