# SPDX-License-Identifier: GPL-2.0-or-later
"""From C sources to BPF instructions, by way of a cache.

Compiled instructions are the same on every kernel of one architecture (what kernels differ in is tried at load or
attach time), so that the cache is keyed by the sources and the flags alone and may be shipped: a wheel brings
``vdexdp/_bytecode``, and needs no compiler.  A file that by its checksum is not what was written counts as missing.
Compiling happens in child processes, one for each unit of programs, in parallel: see
:mod:`vdexdp.control.bytecode_bcc`.  clang's start and the headers cost as much as a program, so that what is wanted
together is compiled together, in as many units as a small host has processors.

Maps are addressed by placeholder descriptors, numbered from ``FIRST_MAP`` on in the order of ``abi.MAPS`` and
``abi.OBSERVE_MAPS``; :func:`relocate` puts real descriptors in.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import platform
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final, Literal

from vdexdp.control import abi
from vdexdp.control.bytecode_bcc import NO_BCC
from vdexdp.errors import KernelFeatureError

FIRST_MAP = 1000
_ALL_MAPS: Final = (*abi.MAPS, *abi.OBSERVE_MAPS)
_COMPILE_SECONDS = 60
_CHECKSUM = 32


@dataclass(frozen=True)
class Program:
    """One loadable program: its C file, the unit that it is compiled with, and the unit's defines."""

    name: str
    kind: Literal["tc", "xdp"]
    source: str
    unit: str
    defines: tuple[str, ...] = ()

    @property
    def function(self) -> str:
        return self.name.removeprefix(OBSERVED)


OBSERVED: Final = "obs_"
"""What the names of the observed build's programs begin with; see bpf/observe.h."""

_NORMAL: Final = (
    Program("port_tc", "tc", "port_tc.c", "port"),
    Program("flood_all", "tc", "flood_tc.c", "port"),
    Program("flood_group", "tc", "flood_tc.c", "port"),
    Program("uplink_ingress", "tc", "uplink_tc.c", "uplink"),
    Program("exception_ingress", "tc", "uplink_tc.c", "uplink"),
    Program("vlan_ingress", "tc", "vlan_tc.c", "vlan"),
    Program("vlan_egress", "tc", "vlan_tc.c", "vlan"),
    Program("port_xdp", "xdp", "port_xdp.c", "xdp"),
    Program("uplink_xdp", "xdp", "uplink_xdp.c", "xdp"),
)
_WATCHED: Final = tuple(
    replace(one, name=OBSERVED + one.name, unit=OBSERVED + one.unit, defines=("OBSERVED_BUILD",)) for one in _NORMAL
)

PROGRAMS: dict[str, Program] = {program.name: program for program in (*_NORMAL, *_WATCHED)}

COMMON: Final = tuple(program.name for program in _NORMAL if program.unit in ("port", "uplink"))
"""What every daemon comes to need."""


BCC_HINT = 'install it with "apt-get install python3-bpfcc", in a virtual environment with --system-site-packages'
VERSIONS = 16
"""Of one program that the cache keeps."""


SHARED_CACHE: Final = Path("/var/cache/vdexdp")


def cache_dir() -> Path:
    """Root's is shared by the host's daemons; other users have their own."""
    if os.geteuid() == 0:
        return SHARED_CACHE
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vdexdp"


@cache
def _sources_digest() -> str:
    digest = hashlib.sha256(platform.machine().encode())
    for path in sorted(abi.source_dir().glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:24]


def file_name(program: Program) -> str:
    """Where a program is kept, in a cache's directory."""
    return f"{program.name}-{_sources_digest()}.bpf"


def _trusted(path: Path) -> bool:
    """Instructions are loaded with our privileges: nobody else may have been able to write them."""
    with suppress(OSError):
        for item in (path, path.parent):
            info = item.stat()
            if info.st_uid not in (0, os.geteuid()) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return False
        return True
    return False


def _cached(program: Program, *more: Path) -> bytes | None:
    for folder in (abi.source_dir().parent / "_bytecode", cache_dir(), *more):
        path = folder / file_name(program)
        if _trusted(path):
            with suppress(OSError):
                data = path.read_bytes()
                image = data[:-_CHECKSUM]
                if image and len(image) % 8 == 0 and data == _sealed(image):
                    return image
    return None


def _sealed(image: bytes) -> bytes:
    """The content of a file: the instructions and their SHA-256."""
    return image + hashlib.sha256(image).digest()


def write(path: Path, image: bytes) -> None:
    """Make a file of a cache, whole or not at all.  Raises OSError."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as stream:
        stream.write(_sealed(image))
    os.chmod(stream.name, 0o644)
    os.replace(stream.name, path)


def store(program: Program, image: bytes) -> None:
    """Keep a program in the cache, beside those of other versions and checkouts: the last ``VERSIONS`` that came."""
    folder = cache_dir()
    with suppress(OSError):  # a cache that can't be written costs the next start a second, nothing else
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        write(folder / file_name(program), image)
        for old in sorted(folder.glob(f"{program.name}-*.bpf"), key=_written)[:-VERSIONS]:
            old.unlink(missing_ok=True)


def _written(path: Path) -> int:
    with suppress(FileNotFoundError):  # another process clears up, too
        return path.stat().st_mtime_ns
    return 0


class _Compiler:
    """A child process that compiles programs of one unit."""

    def __init__(self, names: Iterable[str]) -> None:
        self.programs = [PROGRAMS[name] for name in names]
        sources = dict.fromkeys(str(abi.source_dir() / program.source) for program in self.programs)
        maps = [f"-DFD_{name}={FIRST_MAP + number}" for number, name in enumerate(_ALL_MAPS)]
        self.child = subprocess.Popen(
            [
                *(sys.executable, "-m", "vdexdp.control.bytecode_bcc", ",".join(sources)),
                ",".join(program.function for program in self.programs),
                "-DVDEXDP_BCC",
                *maps,
                *(f"-D{define}" for define in self.programs[0].defines),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(Path(abi.__file__).resolve().parents[2])},
        )

    def result(self) -> dict[str, bytes]:
        """Waits, and fills the cache.  Raises KernelFeatureError."""
        try:
            output, messages = self.child.communicate(timeout=_COMPILE_SECONDS)
        except subprocess.TimeoutExpired:
            raise KernelFeatureError("compiler", f"no result within {_COMPILE_SECONDS} s", "try again") from None
        if self.child.returncode:
            names = ", ".join(one.name for one in self.programs)
            raise _refused(names, self.child.returncode, messages.decode(errors="replace"))
        compiled = json.loads(output)
        images = {program.name: bytes.fromhex(compiled[program.function]) for program in self.programs}
        for program in self.programs:
            store(program, images[program.name])
        return images

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
            self.child.communicate()


_early: dict[str, _Compiler] = {}
"""Compilers of whole units that were started before anybody asked."""


def _units(names: Iterable[str]) -> dict[str, list[str]]:
    units: dict[str, list[str]] = {}
    for name in names:
        units.setdefault(PROGRAMS[name].unit, []).append(name)
    return units


def compile_early() -> None:
    """Starts to compile what of ``COMMON`` the cache lacks, for :func:`images` to fetch."""
    for unit, names in _units(COMMON).items():
        if any(_cached(PROGRAMS[name]) is None for name in names):
            _early[unit] = _Compiler(names)
            atexit.register(_early[unit].close)


def compile_programs(names: Iterable[str]) -> dict[str, bytes]:
    """Compiles, in parallel, without looking into the cache, and fills it.

    Raises KernelFeatureError with clang's first error, or with what has to be installed.
    """
    units = _units(names)
    with ExitStack() as undo:
        compilers = [_early.pop(unit) if unit in _early else _Compiler(units[unit]) for unit in units]
        for compiler in compilers:
            undo.callback(compiler.close)
        images: dict[str, bytes] = {}
        for compiler in compilers:
            images |= compiler.result()
    return images


def _refused(name: str, status: int, messages: str) -> KernelFeatureError:
    lines = [line for line in messages.splitlines() if line.strip()]
    subject, them = (f"programs {name}", "them") if "," in name else (f"program {name}", "it")
    if status == NO_BCC:
        why = "" if "No module named 'bcc'" in messages else f" ({lines[-1]})"
        return KernelFeatureError(
            subject,
            f"neither shipped nor in the bytecode cache, and bcc is not installed to compile {them}{why}",
            BCC_HINT + "; a package from scripts/package ships the programs; --accel off does without",
        )
    if "FileNotFoundError" in messages and lines:
        return KernelFeatureError(subject, lines[-1], 'install the headers with "apt-get install linux-libc-dev"')
    first = next((line for line in lines if "error:" in line), lines[-1] if lines else "no message")
    error = KernelFeatureError(subject, f"does not compile: {first}", '"vdexdp -v compile" shows all of it')
    error.log = messages
    return error


def missing() -> list[str]:
    """The programs of plugs that are neither shipped nor in a cache, the daemon's included."""
    return [program.name for program in _NORMAL if _cached(program, SHARED_CACHE) is None]


def compiler_problem() -> str:
    """Why bcc can't be used here, "" if it can; tried in a child process, as compiling is."""
    code = "import bcc; bcc.BPF"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    lines = done.stderr.strip().splitlines() or ["no message"]
    return lines[-1] if done.returncode else ""


def images(names: Iterable[str]) -> dict[str, bytes]:
    """Instructions for each program, from the cache where they are there."""
    wanted = list(names)
    found = {name: image for name in wanted if (image := _cached(PROGRAMS[name])) is not None}
    missing = [name for name in wanted if name not in found]
    compiled = compile_programs(missing) if missing else {}
    return {name: found.get(name) or compiled[name] for name in wanted}


def relocate(image: bytes, map_fds: Mapping[str, int], substitutes: Mapping[int, int | None]) -> bytes:
    """Puts map descriptors in for the placeholders, and ``substitutes`` for the helpers that the kernel lacks.

    The former are the immediates of ``ld_imm64`` (opcode 0x18) whose source register is BPF_PSEUDO_MAP_FD (1), the
    latter those of ``call`` (0x85) whose source register is 0.  In place of a call whose substitute is None, r0 is set
    to 0.
    """
    names = _ALL_MAPS
    out = bytearray(image)
    offset = 0
    while offset < len(out):
        if out[offset] == 0x18:
            if out[offset + 1] >> 4 == 1:
                (placeholder,) = struct.unpack_from("=i", out, offset + 4)
                struct.pack_into("=i", out, offset + 4, map_fds[names[placeholder - FIRST_MAP]])
            offset += 8
        elif out[offset] == 0x85 and out[offset + 1] >> 4 == 0:
            (helper,) = struct.unpack_from("=i", out, offset + 4)
            other = substitutes.get(helper, helper)
            out[offset : offset + 8] = struct.pack("=BBhi", 0xB7 if other is None else 0x85, 0, 0, other or 0)
        offset += 8
    return bytes(out)
