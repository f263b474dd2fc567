# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel has and what our programs cost its verifier: ``python -m tests.vm.facts`` prints it, a line of JSON.

The programs are counted as the daemon's loader hands them to the kernel, with whatever it puts in for what is missing.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any
from unittest import mock

from vdexdp.control import bpf_prog
from vdexdp.control.dataplane import Dataplane
from vdexdp.control.features import Features
from vdexdp.control.probe import POINTS
from vdexdp.errors import VdexdpError


def programs() -> dict[str, dict[str, Any]]:
    """By name: instructions, and how many the verifier walks, or why it refuses."""
    found: dict[str, dict[str, Any]] = {}
    load = bpf_prog.load

    def counted(kind: str, name: str, instructions: bytes, *, prog_flags: int = 0, **others: Any) -> int:
        facts = found[name] = {"instructions": len(instructions) // 8}
        try:
            facts["verified"] = bpf_prog.verified_instructions(kind, name, instructions, prog_flags)
        except VdexdpError as error:
            found[name]["refused"] = error.cause
        return load(kind, name, instructions, prog_flags=prog_flags, **others)

    with mock.patch.object(bpf_prog, "load", counted):
        dataplane = Dataplane.create()
        for point in POINTS:
            with suppress(VdexdpError):
                dataplane.program(point)
        dataplane.close()
    return {name: facts for name, facts in sorted(found.items()) if name != "probe"}


def gather() -> dict[str, Any]:
    return {"release": os.uname().release, "features": Features().all(), "programs": programs()}


if __name__ == "__main__":
    print(json.dumps({"facts": gather()}))
