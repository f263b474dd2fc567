# SPDX-License-Identifier: GPL-2.0-or-later
"""What is quoted of the verifier's log, from kernels old and new."""

from __future__ import annotations

import pytest

from vdexdp.control.bpf_prog import last_words

OLD = """\
0: R1=ctx() R10=fp0
0: (95) exit
R0 !read_ok
processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""
NEW = """\
0: R1=ctx() R10=fp0
0: (95) exit
R0 !read_ok

Verification failed: Register Type Safety: Unreadable register

Reason:
  R0 has never been initialized on this path, so the verifier cannot use it as an input.

Suggestion:
  Initialize R0 on every path before this instruction.

processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""


@pytest.mark.parametrize("log", [OLD, NEW], ids=["until Linux 7.2", "since Linux 7.3"])
def test_the_instruction_and_what_is_wrong_with_it(log: str) -> None:
    assert last_words(log) == "0: (95) exit / R0 !read_ok"


def test_a_single_line() -> None:
    assert last_words("unreachable insn 1\nprocessed 0 insns\n") == "unreachable insn 1"
    assert last_words("unreachable insn 1\n\nVerification failed: x\n") == "unreachable insn 1"
    assert last_words("") == ""
