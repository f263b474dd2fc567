# SPDX-License-Identifier: GPL-2.0-or-later
"""What somebody who helps needs to know of a host, in one archive, without its secrets.

Each part stands alone: where one can't be had, its file says why, and the others are there.  Commands run as processes
of their own, so that one that hangs is left behind.  No key file, no environment and no frame is read; what looks like
a password in what is, and the arguments of commands that VNLs name, are blanked.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from vdexdp import __version__
from vdexdp.control import client
from vdexdp.control.protocol import RUN_DIR, netns_inode
from vdexdp.errors import HostError

PACKAGES: Final = ("click", "pyroute2", "prometheus-client", "rich", "cryptography")
SYSCTLS: Final = (
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_limit",
    "net/core/netdev_max_backlog",
    "net/ipv4/igmp_max_memberships",
    "kernel/unprivileged_bpf_disabled",
)
CONFIG: Final = re.compile(
    r"^(# )?CONFIG_(\w*BPF\w*|XDP\w*|NET_CLS_ACT|NET_SCH_INGRESS|NET_XGRESS|TUN|VETH|VXLAN|MACVTAP)\b"
)
LIMIT: Final = 30.0
"""Seconds for one command."""
LOG_MAX: Final = 1 << 18
"""Bytes of one log, its end."""

_SECRET = re.compile(r"(?i)\b(\w*(?:passw(?:or)?d|secret|token|psk|key)\s*[=:]\s*)[^\s\"'/\]}&,;]+")
_COMMAND = re.compile(r"(cmd://\S+)[ \t][^\"\n]*?(?=\"| -- |: |\n|$)")


def redacted(text: str) -> str:
    """A text without what may be secret in it."""
    return _SECRET.sub(r"\1…", _COMMAND.sub(r"\1 …", text))


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return f"{command[0]}: no end after {LIMIT:.0f} s\n"
    return done.stdout or f"status {done.returncode}: {done.stderr}"


def _vdexdp(*arguments: str) -> str:
    package = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {package!r}); from vdexdp.__main__ import main; main()"
    return _run(sys.executable, "-P", "-c", code, *arguments)


def _versions() -> str:
    found: dict[str, Any] = {"vdexdp": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    kernel = os.uname()
    found |= {"kernel": kernel.release, "build": kernel.version, "machine": kernel.machine, "netns": netns_inode()}
    with suppress(OSError):
        found["system"] = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    found["sysctl"] = {}
    for name in SYSCTLS:
        with suppress(OSError):
            found["sysctl"][name] = Path("/proc/sys", name).read_text().strip()
    return json.dumps(found, indent=2)


def _config() -> str:
    packed, plain = Path("/proc/config.gz"), Path(f"/boot/config-{os.uname().release}")
    text = gzip.decompress(packed.read_bytes()).decode() if packed.exists() else plain.read_text()
    return "".join(f"{line}\n" for line in text.splitlines() if CONFIG.match(line))


def _daemon_log() -> str:
    records = client.call("log", limit=5.0)["records"]
    return "".join(json.dumps(record) + "\n" for record in records)


def _explain() -> str:
    plugs = client.call("show", limit=5.0)["plugs"]
    kinds = dict.fromkeys(tuple(plug["vnls"]) for plug in plugs)
    return "".join(f"{first} -- {second}\n{_vdexdp('explain', first, second)}\n" for first, second in list(kinds)[:20])


def _journal() -> str:
    if shutil.which("journalctl") is None:
        return "journalctl is not installed\n"
    return _run("journalctl", "--no-pager", "-n", "500", "-o", "short-iso", "-u", "vdexdp*", "-u", "vde_plug@*")


def _tail(path: Path) -> Callable[[], str]:
    return lambda: path.read_bytes()[-LOG_MAX:].decode(errors="replace")


def parts() -> Iterator[tuple[str, Callable[[], str]]]:
    """Each file's name, and what makes its content."""
    yield "versions.json", _versions
    yield "kernel-config.txt", _config
    yield "doctor.json", lambda: _vdexdp("doctor", "--json")
    yield "show.json", lambda: _vdexdp("show", "--json")
    yield "explain.txt", _explain
    yield "daemon.log", _daemon_log
    yield "journal.log", _journal
    for path in sorted((RUN_DIR / f"networks-{netns_inode()}").glob("*.log")):
        yield f"networks/{path.name}", _tail(path)


def archive() -> bytes:
    """A tar.gz of all parts."""
    memory = io.BytesIO()
    top = f"vdexdp-support-{time.strftime('%Y%m%d-%H%M%S')}"
    with tarfile.open(fileobj=memory, mode="w:gz") as tar:
        for name, make in parts():
            try:
                text = make()
            except Exception as error:  # a part that is broken is what the others are wanted for
                text = f"not available: {error}\n"
            data = redacted(text).encode()
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size, info.mtime, info.mode = len(data), int(time.time()), 0o600
            tar.addfile(info, io.BytesIO(data))
    return memory.getvalue()


def write(path: Path, data: bytes) -> None:
    """Make a file, for its owner only, whole or not at all.  Raises HostError."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise HostError.from_oserror(str(path), error, "name another file with -o") from error
