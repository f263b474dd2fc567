# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows whose a node's directory is and who may use it, that no two nodes serve one, that what a dead node has left is
taken over and nothing else, and that nothing stays behind in the file system.

Some tests need root.
"""

from __future__ import annotations

import grp
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.legacy import BROADCAST, Client, clients, frame, mac, node
from tests.unprivileged import NOBODY_UID
from vdexdp.errors import HostError, PrivilegeError, RequestError, VnlError
from vdexdp.lab import wait_until
from vdexdp.plugins import registry
from vdexdp.plugins.base import OpenContext


def permissions(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


MODES = [
    ("", None, 0o600, 0o2700),
    ("[mode=0660]", None, 0o660, 0o2770),
    ("[mode=0777]", None, 0o666, 0o2777),
    ("[mode=0644]", None, 0o644, 0o2755),
    ("[mode=0660/dirmode=0750]", None, 0o660, 0o750),
    ("[dirmode=02711]", None, 0o600, 0o2711),
    ("", 0o770, 0o660, 0o2770),
    ("[mode=0600]", 0o770, 0o600, 0o2700),
]


@pytest.mark.parametrize(("options", "given", "mode", "dirmode"), MODES)
def test_modes(tmp_path: Path, options: str, given: int | None, mode: int, dirmode: int) -> None:
    before = os.umask(0o077)
    try:
        with node(f"hub://{tmp_path}/hub{options}", OpenContext(mode=given)) as hub:
            assert permissions(hub.directory) == dirmode
            assert permissions(f"{hub.directory}/ctl") == mode
            with Client(hub.directory) as client:
                assert permissions(client.peer) == mode
    finally:
        os.umask(before)
    assert not os.path.exists(f"{tmp_path}/hub")


@pytest.mark.parametrize(("options", "given"), [("[grp=games]", None), ("", "games"), ("[grp=games]", "daemon")])
def test_group(root: None, tmp_path: Path, options: str, given: str | None) -> None:
    games = grp.getgrnam("games").gr_gid
    with (
        node(f"hub://{tmp_path}/hub{options}", OpenContext(group=given)) as hub,
        Client(hub.directory) as client,
    ):
        assert {os.stat(path).st_gid for path in (hub.directory, f"{hub.directory}/ctl", client.peer)} == {games}
        assert permissions(hub.directory) == 0o2700, "changing the group leaves setgid alone"


def test_standard_path() -> None:
    import pwd

    path = f"/tmp/vdenode_{pwd.getpwuid(os.geteuid()).pw_name}"
    with node("hub://") as hub:
        assert hub.directory == path
        assert permissions(path) == 0o2700


def test_a_directory_is_served_once(tmp_path: Path) -> None:
    path = f"{tmp_path}/sw"
    with node(f"switch://{path}") as switch, clients(switch, 2) as (a, b):
        for scheme in ("switch", "hub"):
            with pytest.raises(HostError, match="another switch is being served there"):
                registry.parse(f"{scheme}://{path}").open()
        a.send(frame(BROADCAST, mac(1)))
        assert len(b.received(1)) == 1
    assert not os.path.exists(path)


def test_a_stock_switch_is_not_taken_over(tmp_path: Path) -> None:
    path = f"{tmp_path}/sw"
    stock = subprocess.Popen(["vde_plug", "null://", f"hub://{path}"])
    try:
        wait_until(lambda: os.path.exists(f"{path}/ctl"))
        with pytest.raises(HostError, match="another switch is being served there"):
            registry.parse(f"switch://{path}").open()
        with Client(path):
            pass
    finally:
        stock.terminate()
        stock.wait()


def test_a_dead_node_is_taken_over(tmp_path: Path) -> None:
    """After SIGKILL of a node with clients, of our own kind and of stock's, a plain restart works at once."""
    path = f"{tmp_path}/sw"
    ours = [
        sys.executable,
        "-c",
        f"import time; from tests.legacy import Node; Node('switch://{path}'); time.sleep(60)",
    ]
    for command in (ours, ["vde_plug", "null://", f"hub://{path}"]):
        victim = subprocess.Popen(command)
        wait_until(lambda: os.path.exists(f"{path}/ctl"))
        client = Client(path)
        victim.kill()
        victim.wait()
        client.close()
        leftover = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        leftover.bind(f"{path}/.00001-00000")
        leftover.close()
        assert len(os.listdir(path)) == 3
        with node(f"switch://{path}") as switch, clients(switch, 2) as (a, b):
            a.send(frame(BROADCAST, mac(1)))
            assert len(b.received(1)) == 1
        assert not os.path.exists(path)


def test_directories_that_are_not_ours(tmp_path: Path) -> None:
    occupied, file, link = tmp_path / "occupied", tmp_path / "file", tmp_path / "link"
    occupied.mkdir(0o755)
    (occupied / "letter").write_text("dear")
    file.write_text("")
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    long = "x" * 100
    for path, error, message in (
        (occupied, RequestError, 'holds "letter", which is no VDE socket'),
        (file, RequestError, "is not a directory"),
        (link, RequestError, "is not a directory"),
        (tmp_path / "no" / "where", HostError, "No such file or directory; create the directory first"),
        (tmp_path / long, RequestError, "too long for the name of a socket"),
        ("/", RequestError, "can't be made a switch"),
    ):
        with pytest.raises(error, match=message):
            registry.parse(f"switch://{path}").open()
    assert permissions(str(occupied)) == 0o755
    assert os.listdir(occupied) == ["letter"]
    assert not (tmp_path / long).exists()


def test_a_directory_of_another_user(root: None, tmp_path: Path) -> None:
    path = tmp_path / "sw"
    path.mkdir()
    os.chown(path, NOBODY_UID, -1)
    with pytest.raises(PrivilegeError, match=f"belongs to user {NOBODY_UID}"):
        registry.parse(f"switch://{path}").open()


@pytest.mark.parametrize(
    "options", ["mode=9", "mode=10000", "grp=no-such-group", "hashsize=-1", "expiretime=x", "colour=red"]
)
def test_bad_options(options: str) -> None:
    with pytest.raises(VnlError):
        registry.parse(f"switch:///tmp/never[{options}]")


def test_unknown_group_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no-such-group: no such group"):
        registry.parse(f"hub://{tmp_path}/hub").open(OpenContext(group="no-such-group"))
    assert not os.path.exists(f"{tmp_path}/hub")
