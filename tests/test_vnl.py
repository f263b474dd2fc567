# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that VNLs mean what they mean to stock libvdeplug (its own parser is the oracle), and what errors say.

Exempt, each by an exact rule: text behind the closing bracket (dropped by stock, refused here), ``%00`` (cuts the
string in stock, refused here), and ``{`` that is quoted in front of a nested VNL (stock cuts the outer part by one byte
for each).
"""

from __future__ import annotations

import ctypes
import grp
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import stock
from vdexdp import vnl
from vdexdp.errors import HostError, VnlError
from vdexdp.vnl import Option, Parsed

OPTIONS = (
    Option("port", "a number"),
    Option("portgroup", "a name", alias="port"),
    Option("vni", "a number"),
    Option("v4", "a flag", flag=True),
    Option("v6", "a flag", flag=True),
    Option("t", "a list", alias="tag"),
    Option("tag", "a list"),
)
WITH_WORD = (Option("", "a port", alias="port"), *OPTIONS)

PIECES = [
    *("port", "portgroup", "vni", "v4", "v6", "v", "t", "tag", "x", "po", "p"),
    *"/////====[[]]{{}}''\"\"\\\\%%%.:- 0129aFé",
    *("%2F", "%5b", "%3D", "%c3%A9", "%00", "://", "vde://", "/port=", "[5]", "{vde://}"),
]
many = settings(max_examples=400, deadline=None)
BODIES = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def table(options: tuple[Option, ...]) -> tuple[list[str], list[tuple[str, int]]]:
    """The names of the variables, and the stock parser's table over them."""
    names = list(dict.fromkeys(option.alias or option.key for option in options))
    return names, [(option.key, names.index(option.alias or option.key)) for option in options]


def oracle(body: str, grammar: str, options: tuple[Option, ...]) -> Parsed | None:
    names, keys = table(options)
    function = "vde_parseparms" if grammar.endswith("slash") else "vde_parsepathparms"
    answer = stock.parse(os.fsencode(body), function, keys, nested=grammar.startswith("nested"))
    if answer is None:
        return None
    values = {name: os.fsdecode(value) for name, value in zip(names, answer.values, strict=True) if value is not None}
    return Parsed(os.fsdecode(answer.address), values, None if answer.nested is None else os.fsdecode(answer.nested))


def ours(body: str, grammar: vnl.Grammar, options: tuple[Option, ...]) -> Parsed | None:
    try:
        return vnl.parse_body(body, grammar, options)
    except VnlError as error:
        if error.cause.startswith("unknown key"):
            return None
        raise


def unquoted_brace(body: str) -> tuple[int, int | None]:
    """How many quoted ``{`` there are in front of the unquoted one (or the end), and where that is.

    Written with a regular expression, so as not to share code with what is tested.
    """
    quoted = 0
    for match in re.finditer(r"'[^']*(?:'|$)|\"[^\"]*(?:\"|$)|\\.?|\{", body, re.DOTALL):
        if match[0] == "{":
            return quoted, match.start()
        quoted += match[0].count("{")
    return quoted, None


def agree(body: str, grammar: vnl.Grammar, options: tuple[Option, ...]) -> None:
    try:
        mine = ours(body, grammar, options)
    except VnlError as error:
        cause = error.cause
    else:
        assert mine == oracle(body, grammar, options)
        return
    if "NUL" in cause:
        assert "%00" in body
        return
    behind = re.fullmatch(r'"(.*)" stands behind the closing ([]}])', cause, re.DOTALL)
    assert behind, cause
    brace = unquoted_brace(body)[1] if grammar.startswith("nested") and behind[2] == "]" else None
    end = len(body) if brace is None else brace
    shorter = body[: end - len(behind[1])] + body[end:]
    assert oracle(shorter, grammar, options) == oracle(body, grammar, options), "stock does not ignore the rest"
    agree(shorter, grammar, options)


@many
@given(BODIES)
@example("ff05::1/p=5/v6/vni=/port=4%2F4/vni=a'/'b")
@example("/=5//v6=")
@example("%4%41%%41%4'1'\\%41\\")
def test_slash(body: str) -> None:
    agree(body, "slash", OPTIONS)


@many
@given(BODIES, st.booleans())
@example("/tmp/a%5Bb[port=3/5]", True)
@example("/tmp/a[5", True)
@example("/tmp/a[v6]x", False)
@example("/tmp/a['/]']", False)
def test_bracket(body: str, word: bool) -> None:
    agree(body, "bracket", WITH_WORD if word else OPTIONS)


@many
@given(BODIES, BODIES, st.sampled_from(["nested", "nested-slash"]))
@example("10/t=11-12", "vlan://3/q{vde://}", "nested-slash")
@example("/key[t=copy]", "vde:///tmp/'}'", "nested")
def test_nested(before: str, inside: str, grammar: vnl.Grammar) -> None:
    body = f"{before}{{{inside}}}"
    quoted, brace = unquoted_brace(body)
    if grammar == "nested-slash" and "[" in body[:brace]:
        return  # stock has no brackets here and loses what is in them: see test_brackets_of_vlan
    if not quoted:
        agree(body, grammar, OPTIONS)
        return
    # Stock cuts the outer part by a byte for each quoted brace, but for one if there is no other brace.
    outer, rest = (body, "") if brace is None else (body[:brace], body[brace:])
    lost = quoted - (brace is None)
    answer = oracle(body, grammar, OPTIONS)
    raw = os.fsencode(outer)
    left = os.fsdecode(raw[: len(raw) - lost])
    cut = oracle(left, grammar.removeprefix("nested-") if "-" in grammar else "bracket", OPTIONS)
    if answer is None or cut is None:
        assert answer is cut
    else:
        assert (answer.address, answer.options) == (cut.address, cut.options)
        assert answer.nested == oracle("0" + rest, grammar, OPTIONS).nested  # type: ignore[union-attr]


def test_quoted_brace() -> None:
    assert vnl.parse_body("a'{'b{vde://}", "nested", OPTIONS) == Parsed("a{b", {}, "vde://")


def test_brackets_of_vlan() -> None:
    """The documented form of libvdeplug_vlan, which its code loses."""
    parsed = vnl.parse_body("3[tag=10:11-12/v6]{tap://t}", "nested-slash", OPTIONS)
    assert parsed == Parsed("3", {"tag": "10:11-12", "v6": ""}, "tap://t")
    assert vnl.parse_body("3/v6[t=2]{}", "nested-slash", OPTIONS) == Parsed("3", {"v6": "", "tag": "2"}, "")


@many
@given(st.text(st.characters(exclude_characters="\0", codec="utf-8")))
def test_raw_is_untouched(body: str) -> None:
    assert vnl.parse_body(body, "raw") == Parsed(body)


@many
@given(st.binary(max_size=40).filter(lambda raw: b"\0" not in raw), st.binary(max_size=40))
def test_percent_carries_any_byte(address: bytes, value: bytes) -> None:
    value = value.replace(b"\0", b"")
    body = "".join(f"%{byte:02x}" for byte in address) + "/vni=" + "".join(f"%{byte:02X}" for byte in value)
    parsed = vnl.parse_body(body, "slash", OPTIONS)
    assert os.fsencode(parsed.address) == address
    assert os.fsencode(parsed.options["vni"]) == value


def test_last_repetition_sets_the_order() -> None:
    assert list(vnl.parse_body("x/p=1/v6/portgroup=2", "slash", OPTIONS).options.items()) == [("v6", ""), ("port", "2")]


@pytest.mark.parametrize(
    ("body", "grammar", "message"),
    [
        ("x/prot=5", "slash", 'test://x/prot=5: unknown key "prot"; did you mean "port"?'),
        ("x/q", "slash", 'test://x/q: unknown key "q"; known are port, portgroup, t, tag, v4, v6, vni'),
        ("x[v6]y", "bracket", 'test://x[v6]y: "y" stands behind the closing ]; move it in front of [, or quote it'),
        ("\ud800", "raw", "'test://\\ud800': contains half a character; only names that a file can have are possible"),
        ("x%00", "slash", "test://x%00: contains a NUL byte, which no name can have; leave it out"),
    ],
)
def test_messages(body: str, grammar: vnl.Grammar, message: str) -> None:
    with pytest.raises(VnlError) as caught:
        vnl.parse_body(body, grammar, OPTIONS, "test")
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


def test_split() -> None:
    assert vnl.split("vxvde://239.1.1.1/if=a://b") == ("vxvde", "239.1.1.1/if=a://b")
    assert vnl.split("/tmp/sw[5]") == ("vde", "/tmp/sw[5]")
    assert vnl.split("") == ("vde", "")
    with pytest.raises(VnlError, match="no scheme in front"):
        vnl.split("://x")


# Default files and VNLs that name a file: stock vde_open is asked which descriptor it took for seqpacket://N.


def stock_fd(text: str) -> int | None:
    lib = stock.library("libvdeplug.so.2")
    lib.vde_open_real.restype = ctypes.c_void_p
    connection = lib.vde_open_real(os.fsencode(text), b"test", 1, None)
    if not connection:
        return None
    fd: int = lib.vde_datafd(ctypes.c_void_p(connection))
    lib.vde_close(ctypes.c_void_p(connection))  # closes fd
    return fd


def new_fd() -> int:
    """A descriptor that stock vde_close may close."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far.close()
    return near.detach()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("ending", ["\n", "\r\n\n", "\nvde://ignored\n"])
@pytest.mark.parametrize(
    ("files", "taken"),
    [
        ([".vdeplug/default", ".vde2/default.switch"], ".vdeplug/default"),
        ([".vde2/default.switch"], ".vde2/default.switch"),
    ],
)
def test_default_files(home: Path, files: list[str], taken: str, ending: str) -> None:
    fds = {name: new_fd() for name in files}
    for name, fd in fds.items():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(f"seqpacket://{fd}{ending}")
    assert vnl.resolve("") == f"seqpacket://{fds[taken]}"
    assert vnl.resolve(str(home / taken)) == f"seqpacket://{fds[taken]}"
    assert stock_fd("") == fds.pop(taken)
    for fd in fds.values():
        os.close(fd)


def test_file_without_newline_at_its_end(home: Path) -> None:
    """Stock cuts the last character of such a file; here it counts."""
    file = home / "a.vnl"
    file.write_text("tap://tap0")
    assert vnl.resolve(str(file)) == "tap://tap0"


def test_file_with_a_path(home: Path) -> None:
    file = home / "a.vnl"
    file.write_text("/tmp/switch[3]\n")
    assert vnl.resolve(str(file)) == "vde:///tmp/switch[3]"


def test_default_directory(home: Path) -> None:
    (home / ".vdeplug").mkdir()
    os.symlink("/nonexistent", home / ".vdeplug/default")
    assert vnl.resolve("") == f"vde://{home}/.vdeplug/default", "a symbolic link counts even where it leads nowhere"


def test_nothing_to_resolve(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vnl.resolve("") == "vde://"
    assert vnl.resolve(str(home)) == f"vde://{home}"
    assert vnl.resolve("tap://x") == "tap://x"
    monkeypatch.delenv("HOME")
    assert vnl.resolve("") == "vde://"


@pytest.mark.parametrize("content", [b"", b"\nvde://\n", b"\x7fELF\0\0\n"])
def test_file_without_a_vnl(home: Path, content: bytes) -> None:
    file = home / "a.vnl"
    file.write_bytes(content)
    with pytest.raises(VnlError, match=r"a\.vnl: its first line is no VNL; "):
        vnl.resolve(str(file))


def test_unreadable_file() -> None:
    """A regular file that not even root can read."""
    with pytest.raises(HostError, match="/proc/self/mem: Input/output error"):
        vnl.resolve("/proc/self/mem")


# What options mean.


@many
@given(st.from_regex(r"(0x[0-9a-f]{1,9}|[0-9]{1,12})([kmgtKMGT]?)(i?[bB])?", fullmatch=True))
@example("0x1b")
@example("010K")
def test_sizes_are_stock(text: str) -> None:
    number = stock.library("libvdeplug_mod.so.2").strtoullm
    number.restype = ctypes.c_ulonglong
    mine = vnl.parse_size(text)
    if mine is None:
        assert re.match("0[0-9]*[89]", text), "only octal numbers with the digits 8 and 9 are refused"
    else:
        assert mine % 2**64 == number(text.encode())


@pytest.mark.parametrize("text", ["", "K", "4X", "-1", " 1", "1.5M", "1KM", "0x", "4 K", "٣"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(VnlError, match="is not a size; give bytes"):
        vnl.size(Parsed("", {"rcvbuf": text}), "rcvbuf", 0)


def test_groups_are_stock() -> None:
    number = stock.library("libvdeplug_mod.so.2").vde_grnam2gid
    number.restype = ctypes.c_uint
    names = [entry.gr_name for entry in grp.getgrall()]
    assert names
    for name in ["", "0", "007", "2147483647", *names]:
        assert vnl.group_id(name) == number(name.encode()), name
    for name in ["no-such-group", "-1", "1x"]:
        assert vnl.group_id(name) is None
        assert number(name.encode()) == 2**32 - 1


Helper = Callable[[Parsed, str], int | None]


def port(parsed: Parsed, key: str) -> int:
    return vnl.integer(parsed, key, 7, 1, 65535)


def tag(parsed: Parsed, key: str) -> int:
    return vnl.integer(parsed, key, 7, 2, 4094, base=0)


def mode(parsed: Parsed, key: str) -> int:
    return vnl.mode(parsed, key, 0o600)


def buffer(parsed: Parsed, key: str) -> int:
    return vnl.size(parsed, key, 0)


def network(parsed: Parsed, key: str) -> int:
    return vnl.vni(parsed, key, 1)


@pytest.mark.parametrize(
    ("helper", "text", "value"),
    [
        (port, None, 7),
        (port, "65535", 65535),
        (port, "0010", 10),
        (tag, "0x10", 16),
        (tag, "010", 8),
        (mode, None, 0o600),
        (mode, "02770", 0o2770),
        (network, None, 1),
        (network, "16777215", 16777215),
        (network, "root", 0),
        (network, "", os.getegid() & 0xFFFFFF),
        (vnl.group, None, None),
        (vnl.group, "root", 0),
    ],
)
def test_values(helper: Helper, text: str | None, value: int | None) -> None:
    assert helper(Parsed("", {} if text is None else {"k": text}), "k") == value


@pytest.mark.parametrize(
    ("helper", "text", "message"),
    [
        (port, "0", "k=0 is out of range; give 1 to 65535"),
        (port, "65536", "k=65536 is out of range; give 1 to 65535"),
        (port, "-1", "k=-1 is not a number; give 1 to 65535"),
        (port, "", "k is not a number; give 1 to 65535"),
        (port, "0x10", "k=0x10 is not a number; give 1 to 65535"),
        (tag, "08", "k=08 is not a number; give 2 to 4094"),
        (mode, "0800", "k=0800 is not an octal mode; give octal permissions, like 0700"),
        (mode, "17777", "k=17777 is not an octal mode; give octal permissions, like 0700"),
        (network, "16777216", "k=16777216 is out of range; give 0 to 16777215"),
        (network, "rooot", 'k=rooot names no group of this system; did you mean "root"?'),
        (vnl.group, "9" * 5000, "k=9"),
        (network, "9" * 5000, "k=9"),
        (buffer, "9" * 5000, "k=9"),
        (vnl.group, "4294967295", "k=4294967295 names no group of this system"),
    ],
)
def test_values_refused(helper: Helper, text: str, message: str) -> None:
    with pytest.raises(VnlError) as caught:
        helper(Parsed("", {"k": text}, vnl="x://"), "k")
    assert str(caught.value).startswith(f"x://: {message}")
