# SPDX-License-Identifier: GPL-2.0-or-later
"""Plugs that a failed test left open are closed before its lab looks for what is still running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.control.rig import PLUGS


@pytest.fixture(autouse=True)
def close_plugs(request: pytest.FixtureRequest) -> Iterator[None]:
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab")
    yield
    while PLUGS:
        PLUGS.pop().close()
