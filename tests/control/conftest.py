# SPDX-License-Identifier: GPL-2.0-or-later
"""Plugs that a failed test left open are closed before its lab looks for what is still running.

Fixtures of the tests about users other than root are here, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.guestkit import POLICY
from tests.control.rig import PLUGS
from vdexdp.lab import Lab, Namespace


@pytest.fixture(autouse=True)
def close_plugs(request: pytest.FixtureRequest) -> Iterator[None]:
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab")
    yield
    while PLUGS:
        PLUGS.pop().close()


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """``POLICY`` as a file."""
    file = tmp_path / "policy.toml"
    file.write_text(POLICY)
    return file


@pytest.fixture
def host(lab: Lab) -> Namespace:
    """A host with an uplink, and nothing running."""
    made = lab.host("host")
    lab.underlay(made, lab.host("other"), mtu=9000)
    return made
