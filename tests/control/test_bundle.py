# SPDX-License-Identifier: GPL-2.0-or-later
"""The support bundle: everything is in it, with and without a daemon, but no secret; a full disk is said clearly."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.control.rig import START, daemon
from tests.labkit import VDEXDP
from vdexdp.control.bundle import redacted
from vdexdp.lab import Lab, Namespace

PARTS = {
    "versions.json",
    "kernel-config.txt",
    "doctor.json",
    "show.json",
    "explain.txt",
    "daemon.log",
    "journal.log",
}


def bundle(host: Namespace, file: Path) -> dict[str, str]:
    host.run(*VDEXDP, "support-bundle", "-o", str(file), timeout=60)
    assert file.stat().st_mode & 0o777 == 0o600
    found = {}
    with tarfile.open(fileobj=io.BytesIO(file.read_bytes())) as tar:
        for member in tar.getmembers():
            content = tar.extractfile(member)
            assert content is not None
            found[member.name.partition("/")[2]] = content.read().decode()
    return found


def test_what_is_in_it(lab: Lab, tmp_path: Path) -> None:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    found = bundle(host, tmp_path / "without.tgz")
    assert found.keys() == PARTS
    assert "no vdexdp daemon runs" in found["show.json"]
    assert "no vdexdp daemon runs" in found["daemon.log"]

    daemon(host)
    plug = host.spawn(*VDEXDP, "vde_plug", "cmd://sleep 4321", "vxvde://234.0.0.1")
    plug.wait_output("bridged into the kernel", START)
    found = bundle(host, tmp_path / "with.tgz")
    assert found.keys() == PARTS
    (shown,) = json.loads(found["show.json"])["plugs"]
    assert shown["vnls"] == ["cmd://sleep …", "vxvde://234.0.0.1"]
    assert not any("4321" in text for name, text in found.items() if name != "journal.log")
    assert json.loads(found["doctor.json"])["ok"] is True
    assert "uplink lan0" in found["explain.txt"]
    assert any("plugged" in json.loads(line)["message"] for line in found["daemon.log"].splitlines())
    versions = json.loads(found["versions.json"])
    assert versions["netns"] == host.inode
    assert versions["click"]
    assert "CONFIG_BPF" in found["kernel-config.txt"] or "not available" in found["kernel-config.txt"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('"cmd://ssh -p 22 host vde_plug", "null://"', '"cmd://ssh …", "null://"'),
        ("plug 1: cmd://ssh host -- vxvde://234.0.0.1 plugged", "plug 1: cmd://ssh … -- vxvde://234.0.0.1 plugged"),
        ("http://x/?token=abc&a=1 PASSWORD=geheim", "http://x/?token=…&a=1 PASSWORD=…"),
        ('psk: "x"', 'psk: "x"'),
        ("vxvde://234.0.0.1/port=5", "vxvde://234.0.0.1/port=5"),
    ],
)
def test_secrets_are_blanked(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_a_full_disk(lab: Lab, tmp_path: Path) -> None:
    host = lab.host("host")
    small = tmp_path / "small"
    small.mkdir()
    fill = f"mount -t tmpfs -o size=4k none {small} && head -c 4096 /dev/zero > {small}/zeros && cd {small}"
    done = host.run("sh", "-c", f'{fill} && "$0" "$@"; echo $?; ls -A', *VDEXDP, "support-bundle", "-o", "b.tgz")
    assert done.stdout.split() == ["1", "zeros"]
    assert done.stderr.strip() == "vdexdp: b.tgz: No space left on device; name another file with -o"
