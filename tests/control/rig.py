# SPDX-License-Identifier: GPL-2.0-or-later
"""What the control plane's tests share: daemons and plugs in a lab's namespaces, and what a host looks like."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.labkit import VDEXDP
from vdexdp.control import bytecode, client
from vdexdp.control.protocol import End, PlugRequest
from vdexdp.lab import Namespace, wait_until
from vdexdp.lab.namespace import Process
from vdexdp.plugins.base import Netdev, Tunnel

GROUP = "234.0.0.1"
START = 20.0
"""Seconds for a daemon to start on a busy machine, compiling included."""

REFUSED = bytes.fromhex("9500000000000000")
"""``exit`` without a verdict: what no verifier takes."""

PLUGS: list[client.Plug] = []
"""What this process holds; a fixture closes what a test left open."""


def tunnel(vni: int = 1, **values: Any) -> Tunnel:
    """A vxvde network, IPv4 unless ``values`` say more."""
    defaults: dict[str, Any] = {"kind": "vxvde", "group": GROUP, "family": 4, "port": 14789, "vni": vni}
    return Tunnel(**{**defaults, **values})


def wire(name: str) -> Netdev:
    return Netdev(name, "wire")


def listening(host: Namespace) -> bool:
    """Whether a daemon answers."""
    try:
        with host.entered():
            client.open_channel().close()
    except client.NotRunning:
        return False
    return True


def daemon(host: Namespace, *options: str) -> Process:
    """A daemon that listens.

    With "--auto" it loads only the programs that are used, and leaves after its last plug.
    """
    process = host.spawn(*VDEXDP, "daemon", *options)
    wait_until(lambda: listening(host) or process.poll() is not None, START, "a daemon that listens")
    assert process.poll() is None, process.output()
    return process


def plug(host: Namespace, first: End, second: End, fds: list[int] | None = None) -> client.Plug:
    """Plug two ends, with this process as the plug."""
    with host.entered():
        index = 0 if fds else None
        made = client.plug(PlugRequest((first, second), ("one://", "two://"), fd_index=(index, None)), fds or [])
    PLUGS.append(made)
    return made


def call(host: Namespace, op: str, **parts: Any) -> dict[str, Any]:
    with host.entered():
        return client.call(op, **parts)


def silent(guest: Namespace, address: str) -> bool:
    """Whether two pings within a second stay without an answer."""
    arguments = ("-c", "2", "-i", "0.2", "-w", "1", address)
    return guest.run("ping", *arguments, check=False).returncode != 0


def port(shown: dict[str, Any], name: str) -> dict[str, Any]:
    """The port of that name, or that begins so."""
    return next(one for one in shown["ports"] if one["name"].startswith(name))


def ping(guest: Namespace, address: str, count: int = 3, size: int = 56) -> bool:
    """Whether at least one of ``count`` pings is answered."""
    arguments = ("-c", str(count), "-i", "0.1", "-W", "2", "-s", str(size), address)
    return guest.run("ping", *arguments, check=False).returncode == 0


def looks(host: Namespace) -> dict[str, Any]:
    """What a failed or finished plug must leave as it was."""
    links = json.loads(host.ip("-j link"))
    kept = ("ifname", "flags", "mtu", "promiscuity", "qdisc", "xdp", "address")
    addresses = json.loads(host.ip("-j address"))
    return {
        "links": [{key: link.get(key) for key in kept} for link in links],
        "addresses": [(one["ifname"], [info["local"] for info in one["addr_info"]]) for one in addresses],
        "routes": host.ip("route") + host.ip("-6 route"),
        "groups": host.run("cat", "/proc/net/igmp").stdout,
        "sockets": host.run("ss", "-Hlanup").stdout,
        "tc": host.run("tc", "qdisc").stdout,
    }


def same(host: Namespace, before: dict[str, Any]) -> None:
    """Wait until the host looks as before; show what differs if it does not."""
    try:
        wait_until(lambda: looks(host) == before, 5.0)
    except TimeoutError:
        now = looks(host)
        assert now == before, [(key, now[key], "instead of", before[key]) for key in now if now[key] != before[key]]


def kill(process: Process) -> None:
    process.signal(signal.SIGKILL)
    process.wait()


def links_held(pid: int | str = "self") -> int:
    """How many BPF links a process holds: attached programs."""
    count = 0
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            count += os.readlink(f"/proc/{pid}/fd/{entry}").startswith("anon_inode:bpf_link")
        except OSError:
            continue
    return count


def workers(host: Namespace) -> list[int]:
    """The exception workers of daemons that were run by hand: alone in a session of their own."""
    found = []
    pids = subprocess.run(
        ["ip", "netns", "pids", host.full_name], capture_output=True, text=True, check=True
    ).stdout.split()
    for pid in pids:
        command = open(f"/proc/{pid}/cmdline", "rb").read()  # noqa: SIM115 - read at once
        session = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[3]  # noqa: SIM115
        if b"daemon" in command and session == pid:
            found.append(int(pid))
    return found


def until(condition: Callable[[], object], what: str, timeout: float = 10.0) -> None:
    wait_until(condition, timeout, what)


def version(place: Path, change: bytes, delay: float = 0.0, patience: float = 10.0) -> Path:
    """A copy of this package whose kernel programs begin with other instructions, and take ``delay`` seconds.

    ``patience``: for how long its daemon waits for plugs that come back.
    """
    root = Path(bytecode.__file__).parents[2]
    shutil.copytree(root / "vdexdp", place / "vdexdp", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "bpf", place / "bpf")
    shipped = place / "_bytecode"
    shipped.mkdir(mode=0o755)
    for name, image in bytecode.images(bytecode.PROGRAMS).items():
        bytecode.write(shipped / bytecode.file_name(bytecode.PROGRAMS[name]), change + image)
    with (place / "vdexdp/control/bytecode.py").open("a") as module:
        module.write(
            f"\nimport time\nread = images\ndef images(names):\n    time.sleep({delay})\n    return read(names)\n"
        )
    with (place / "vdexdp/control/core.py").open("a") as module:
        module.write(f"\nCOME_BACK = {patience}\n")
    return place


def attached(host: Namespace, *devices: str) -> list[str]:
    """The ids and names of the programs on these devices that no link holds there."""
    texts = [
        host.run("tc", "filter", "show", "dev", device, side).stdout
        for device in devices
        for side in ("ingress", "egress")
    ]
    texts += [host.ip(f"-d link show dev {device}") for device in devices]
    return [match[0] for text in texts for match in re.finditer(r" id \d+ name \w+", text)]


def behind_links(plugs: list[dict[str, Any]], field: str) -> dict[str, str]:
    """A field of /proc/PID/fdinfo, "prog_id" or "prog_tag", of all links that plugs of ``show`` hold, by link."""
    found = {}
    for plug in plugs:
        for info in Path(f"/proc/{plug['pid']}/fdinfo").iterdir():
            try:
                fields = dict(line.split(":\t", 1) for line in info.read_text().splitlines() if ":\t" in line)
            except FileNotFoundError:
                continue
            if "link_type" in fields:
                found[fields["link_id"]] = fields[field]
    return found
