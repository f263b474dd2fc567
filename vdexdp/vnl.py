# SPDX-License-Identifier: GPL-2.0-or-later
"""The VNL grammar: what stands in a Virtual Network Locator, before any scheme gives it a meaning.

A VNL is ``scheme://body``.  The scheme says which grammar its body has:

=============== =========================================== ==========================================
raw             ``body``                                    never unquoted
slash           ``address/key=value/flag``
bracket         ``address[key=value/flag]``                 the address may contain slashes
nested          ``address[key=value/flag]{VNL}``            bracket, around another VNL
nested-slash    ``address/key=value/flag{VNL}``             slash, around another VNL; brackets do, too
=============== =========================================== ==========================================

Quoting protects delimiters: ``'…'`` and ``"…"`` (everything inside is literal), ``\\c``, and ``%XX`` (hexadecimal,
outside quotes).  The end of the text closes a quote that is still open, and stands for a missing ``]`` or ``}``.  The
inner VNL stays quoted for its own parse.  ``=`` separates key and value even when it was quoted.

Keys may be shortened: the first option in the scheme's table that begins with what was written is meant.  The last
repetition wins.  All this is what libvdeplug does; three things it does are refused or mended here, as they only ever
hide a mistake: text behind the closing bracket or brace (libvdeplug drops it), ``%00`` (it cuts the string), and a
quoted ``{`` in front of a nested VNL (it cuts the outer part one byte short).

The text is handled as bytes, so that ``%C3%A9`` and names that are not UTF-8 work; the results are ``str`` as from
``os.fsdecode``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vdexdp.errors import HostError, VnlError
from vdexdp.wire.vxlan import VNI_MAX

Grammar = Literal["raw", "slash", "bracket", "nested", "nested-slash"]

DEFAULT_SCHEME = "vde"

DEFAULT_FILES = (".vdeplug/default", ".vde2/default.switch")
"""What the empty VNL means, relative to $HOME; the first that exists."""

_SQUOTE, _DQUOTE, _BACKSLASH, _PERCENT = b"'\"\\%"


@dataclass(frozen=True)
class Option:
    """One ``key=value`` or flag of a scheme, for parsing, ``--help`` and docs/vnl.md.

    ``default`` is what is shown, not what is used.  Order matters: keys match by prefix, the first entry wins.  The key
    "", which has to be the first, stands for a word that is no key (``vde://dir[5]``).  An option with ``alias`` is
    reported under that other key.
    """

    key: str
    help: str
    default: str = ""
    flag: bool = False
    alias: str = ""


@dataclass(frozen=True)
class Parsed:
    """A VNL body after the grammar of its scheme, unquoted: the address, and options by full key.

    Of a repeated option the last counts, for the order of ``options``, too.  A key without ``=`` has the value "".
    """

    address: str
    options: dict[str, str] = field(default_factory=dict)
    nested: str | None = None  # the inner VNL of a nested grammar, still quoted
    vnl: str = field(default="", compare=False)  # the whole VNL as it was written, for messages

    def error(self, key: str, cause: str, hint: str = "") -> VnlError:
        """The error to raise about the option ``key``."""
        shown = f"{key}={self.options[key]}" if self.options.get(key) else key
        return VnlError(self.vnl or shown, f"{shown} {cause}", hint)


def split(text: str) -> tuple[str, str]:
    """Scheme and body; a VNL without ``://`` is the path of a ``vde`` switch.  Raises VnlError for an empty scheme."""
    scheme, separator, body = text.partition("://")
    if not separator:
        return DEFAULT_SCHEME, text
    if not scheme:
        raise VnlError(text, "no scheme in front of ://", 'write for instance "vde://" or "tap://name"')
    return scheme, body


def resolve(text: str) -> str:
    """The VNL that ``text`` stands for: ``text`` itself, or the first line of the regular file that it names.

    The empty VNL stands for the first of DEFAULT_FILES that exists.  The answer always has a scheme.  Raises VnlError
    where the file holds no VNL, HostError where it can't be read.
    """
    if "://" in text:
        return text
    path = text or _default_file()
    if not os.path.isfile(path):
        return f"{DEFAULT_SCHEME}://{path}"
    try:
        with open(path, "rb") as file:
            line = os.fsdecode(file.readline(65536)).rstrip("\r\n")
    except OSError as error:
        raise HostError.from_oserror(path, error) from error
    if not line or "\0" in line:
        raise VnlError(
            path, "its first line is no VNL", "the first line of a regular file given as VNL has to be a VNL"
        )
    return line if "://" in line else f"{DEFAULT_SCHEME}://{line}"


def _default_file() -> str:
    home = os.environ.get("HOME")
    candidates = [os.path.join(home, name) for name in DEFAULT_FILES] if home else []
    return next((path for path in candidates if os.path.lexists(path)), "")


def parse_body(body: str, grammar: Grammar, options: Sequence[Option] = (), scheme: str = "") -> Parsed:
    """Take ``body`` apart by ``grammar``.  ``scheme`` is only for messages.  Raises VnlError."""
    vnl = f"{scheme}://{body}" if scheme else body
    try:
        data = os.fsencode(body)
    except UnicodeEncodeError as error:
        raise VnlError(
            ascii(vnl), "contains half a character", "only names that a file can have are possible"
        ) from error
    if grammar == "raw":
        return Parsed(body, vnl=vnl)
    nested: bytes | None = None
    if grammar in ("nested", "nested-slash"):
        data, nested = _enclosed(data, b"{", b"}", vnl)
    inner: bytes | None = None
    if grammar != "slash":
        data, inner = _enclosed(data, b"[", b"]", vnl)
    words: list[bytes] = []
    if grammar in ("slash", "nested-slash"):
        data, *words = _pieces(data)
    if inner is not None:
        words += _pieces(inner)
    return Parsed(
        _text(data, vnl),
        _options([_text(word, vnl) for word in words], options, vnl),
        None if nested is None else os.fsdecode(nested),
        vnl,
    )


def _unprotected(data: bytes) -> Iterator[int]:
    """Positions of the bytes that may be delimiters: outside quotes, not escaped, not themselves quoting."""
    quote = 0
    position = 0
    while position < len(data):
        byte = data[position]
        if quote:
            if byte == quote:
                quote = 0
        elif byte in (_SQUOTE, _DQUOTE):
            quote = byte
        elif byte == _BACKSLASH:
            position += 1
        else:
            yield position
        position += 1


def _unquote(data: bytes) -> bytes:
    out = bytearray()
    quote = 0
    position = 0
    while position < len(data):
        byte = data[position]
        position += 1
        if quote:
            if byte == quote:
                quote = 0
            else:
                out.append(byte)
        elif byte in (_SQUOTE, _DQUOTE):
            quote = byte
        elif byte == _BACKSLASH:
            out += data[position : position + 1]
            position += 1
        elif byte == _PERCENT and re.fullmatch(rb"[0-9A-Fa-f]{2}", data[position : position + 2]):
            out.append(int(data[position : position + 2], 16))
            position += 2
        else:
            out.append(byte)
    return bytes(out)


def _text(data: bytes, vnl: str) -> str:
    plain = _unquote(data)
    if b"\0" in plain:
        raise VnlError(vnl.replace("\0", "\\0"), "contains a NUL byte, which no name can have", "leave it out")
    return os.fsdecode(plain)


def _enclosed(data: bytes, opening: bytes, closing: bytes, vnl: str) -> tuple[bytes, bytes | None]:
    """What stands before the first unprotected ``opening``, and what from there to the last unprotected ``closing``."""
    start = next((i for i in _unprotected(data) if data[i] == opening[0]), None)
    if start is None:
        return data, None
    inside = data[start + 1 :]
    ends = [i for i in _unprotected(inside) if inside[i] == closing[0]]
    if not ends:
        return data[:start], inside
    if rest := inside[ends[-1] + 1 :]:
        shown = os.fsdecode(rest)
        raise VnlError(
            vnl,
            f'"{shown}" stands behind the closing {closing.decode()}',
            f"move it in front of {opening.decode()}, or quote it",
        )
    return data[:start], inside[: ends[-1]]


def _pieces(data: bytes) -> list[bytes]:
    cuts = [i for i in _unprotected(data) if data[i] == ord("/")]
    starts = [0, *(cut + 1 for cut in cuts)]
    return [data[start:end] for start, end in zip(starts, [*cuts, len(data)], strict=True)]


def _options(words: Iterable[str], options: Sequence[Option], vnl: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key:
            continue
        option = next((option for option in options if option.key.startswith(key)), None)
        if option is None and not equals and options and not options[0].key:
            option, value = options[0], word
        if option is None:
            keys = [option.key for option in options if option.key]
            raise VnlError(vnl, f'unknown key "{key}"', suggest(key, keys) or "this scheme has no options")
        name = option.alias or option.key
        found.pop(name, None)
        found[name] = value
    return found


def suggest(word: str, known: Iterable[str]) -> str:
    """A hint for a word that is not ``known``: the nearest one, else all of them; "" where there are none."""
    names = sorted(set(known))
    return nearest(word, names) or (f"known are {', '.join(names)}" if names else "")


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the one of ``known`` that may have been meant; "" where none is near."""
    import difflib

    near = difflib.get_close_matches(word, sorted(set(known)), n=1)
    return f'did you mean "{near[0]}"?' if near else ""


# What options mean, for plugin authors.  Each takes the default that holds where the option is absent.


def integer(parsed: Parsed, key: str, default: int, low: int, high: int, *, base: int = 10) -> int:
    """The option as number from ``low`` to ``high``; base 0 takes ``0x1f`` and ``017`` as C does.  Raises VnlError."""
    text = parsed.options.get(key)
    if text is None:
        return default
    value = c_integer(text, base)
    if value is None or not low <= value <= high:
        raise parsed.error(key, "is not a number" if value is None else "is out of range", f"give {low} to {high}")
    return value


def size(parsed: Parsed, key: str, default: int) -> int:
    """The option in bytes; K, M, G and T are powers of 1024, ``64KB`` and ``64KiB`` mean ``64K``.  Raises VnlError."""
    text = parsed.options.get(key)
    if text is None:
        return default
    value = parse_size(text)
    if value is None:
        raise parsed.error(key, "is not a size", "give bytes, or a number with K, M, G or T, like 4M")
    return value


def mode(parsed: Parsed, key: str, default: int) -> int:
    """The option as octal access permissions, 0 to 07777.  Raises VnlError."""
    text = parsed.options.get(key)
    if text is None:
        return default
    value = c_integer(text, 8)
    if value is None or value > 0o7777:
        raise parsed.error(key, "is not an octal mode", "give octal permissions, like 0700")
    return value


def group(parsed: Parsed, key: str) -> int | None:
    """The gid of the option: a number or a group's name; empty means the caller's effective group; None where absent.

    Raises VnlError where there is no such group.
    """
    text = parsed.options.get(key)
    if text is None:
        return None
    gid = group_id(text)
    if gid is None:
        import grp

        hint = nearest(text, (entry.gr_name for entry in grp.getgrall())) or 'see "getent group"'
        raise parsed.error(key, "names no group of this system", hint)
    return gid


def vni(parsed: Parsed, key: str, default: int) -> int:
    """The option as VNI: a number of 24 bits, or a group whose gid is meant (its lowest 24 bits, as in libvdeplug).

    Raises VnlError.
    """
    text = parsed.options.get(key)
    if text is None:
        return default
    if text.isdecimal():
        return integer(parsed, key, default, 0, VNI_MAX)
    if text and not text[0].isalpha() and group_id(text) is None:
        raise parsed.error(key, "is not a number", f"give 0 to {VNI_MAX}, or a group's name")
    gid = group(parsed, key)
    assert gid is not None
    return gid & VNI_MAX


def group_id(text: str) -> int | None:
    """The gid of a group's name or decimal number; "" is the caller's effective group; None for no such group."""
    if not text:
        return os.getegid()
    if text.isdecimal():
        value = c_integer(text, 10)
        return value if value is not None and value < 2**32 - 1 else None
    import grp

    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        return None


def parse_size(text: str) -> int | None:
    """Bytes in ``text``: a number (``0x`` and leading ``0`` as in C) and at most one of K, M, G, T; None otherwise."""
    match = re.fullmatch(r"(0[xX][0-9a-fA-F]+|[0-9]+)([kKmMgGtT]?)(?:[iI]?[bB])?", text)
    number = c_integer(match[1], 0) if match else None
    if match is None or number is None:
        return None
    return number << (" KMGT".index(match[2].upper() or " ") * 10)


def c_integer(text: str, base: int) -> int | None:
    """``text`` as an unsigned number of ``base``; 0 decides by prefix as strtol does.  None where it is not one."""
    if base == 0:
        if text[:2] in ("0x", "0X"):
            text, base = text[2:], 16
        else:
            base = 8 if text.startswith("0") else 10
    if not re.fullmatch("[0-9a-fA-F]+", text):
        return None
    try:
        return int(text, base)
    except ValueError:
        return None
