# SPDX-License-Identifier: GPL-2.0-or-later
"""One bench for all tests of this folder: loading the programs is what takes time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.bpf.rig import Bench


@pytest.fixture(scope="session", autouse=True)
def bench() -> Iterator[None]:
    if os.geteuid():
        pytest.fail("these tests need root; run: sudo scripts/test")
    Bench.current = Bench()
    yield
    Bench.current.close()
