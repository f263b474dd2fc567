# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/plugins.md does what it says: its code blocks, in a package as pip would install it, and the real command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.labkit import VDEXDP
from tests.rawframes import frame
from vdexdp.cable import Cable
from vdexdp.plugins.base import BATCH, Batch, Netdev
from vdexdp.plugins.stream import GREETING
from vdexdp.wire.vdestream import Decoder, encode

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs/plugins.md").read_text(), re.MULTILINE | re.DOTALL)
MODULE = next(text for language, text in BLOCKS if language == "python")


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What all the Python blocks define, executed one after the other."""
    defined: dict[str, Any] = {"__name__": "vdexdp_mirror"}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "docs/plugins.md", "exec", dont_inherit=True), defined)
    return defined


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment with the package in it, by its metadata; the entry points are those of the page."""
    project = tomllib.loads(next(text for language, text in BLOCKS if language == "toml"))["project"]
    (tmp_path / "vdexdp_mirror.py").write_text(MODULE)
    metadata = tmp_path / "vdexdp_mirror-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in targets.items())
        for group, targets in project["entry-points"].items()
    )
    (metadata / "entry_points.txt").write_text(points)
    return {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}


def run(installed: dict[str, str], *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*VDEXDP, "vde_plug", *words], input=stdin, capture_output=True, env=installed, timeout=20, check=False
    )


def test_the_command_of_the_page(installed: dict[str, str]) -> None:
    frames = [frame(size, size, src=3) for size in (60, 61, 1514)]
    # The reader of our output leaves first, so the mirror has its time; the shell keeps the input open for a moment.
    data = GREETING + b"".join(map(encode, frames))
    script = f"(cat; sleep 1) | {sys.executable} -m vdexdp vde_plug mirror:///limit=8 -"
    result = subprocess.run(
        ["sh", "-c", script], input=data, capture_output=True, env=installed, timeout=20, check=False
    )
    line = next(text for language, text in BLOCKS if language == "console").splitlines()[1]
    assert result.stderr.decode().startswith(line.removesuffix("...)"))
    decoder = Decoder()
    decoder.feed(result.stdout)
    returned = [bytes(view) for view in decoder.next_frames(len(frames))]
    assert returned == [data[6:12] + data[:6] + data[12:] for data in frames]


def test_mistakes_are_told_well(installed: dict[str, str]) -> None:
    for vnl, says in (
        ("mirror:///limit=0", "mirror:///limit=0: limit=0 is out of range; give 1 to 4096"),
        ("mirror:///lamit=2", 'unknown key "lamit"; did you mean "limit"?'),
        ("miror://", 'unknown scheme; did you mean "mirror"?'),
    ):
        result = run(installed, vnl, "null://")
        assert result.returncode == 2
        assert says in result.stderr.decode()


def test_the_mirror_loses_and_counts(names: dict[str, Any]) -> None:
    plugin = names["MirrorPlugin"]()
    stream = plugin.open(names["MirrorSpec"](limit=40), None)
    batch = Batch()
    for number in range(BATCH):
        batch.append(frame(60, number))
    assert stream.send(batch) == BATCH
    assert stream.drops == {"full": 24}
    batch.clear()
    stream.recv(batch)
    assert len(batch) == 40
    batch.clear()
    stream.recv(batch)
    assert len(batch) == 0
    cable = Cable(stream, plugin.open(names["MirrorSpec"](), None))
    assert cable.step(0.01) is None
    stream.close()
    stream.close()


def test_the_other_blocks(names: dict[str, Any]) -> None:
    one, two = (names["DatagramStream"](end) for end in names["socket"].socketpair(names["socket"].AF_UNIX, 2))
    batch = Batch()
    batch.append(frame(60))
    one.send(batch)
    batch.clear()
    two.recv(batch)
    assert bytes(batch[0]) == frame(60)
    one.close()
    two.close()
    assert names["CardPlugin"]().kernel_end(None) == Netdev("eth1", side="wire")
