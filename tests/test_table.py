# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that docs/vnl.md says what the plugins say, and that what they say holds for the grammar."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdexdp.plugins import registry, table
from vdexdp.vnl import parse_body, split

PAGE = Path(__file__).parent.parent / "docs/vnl.md"


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text() == table.page(), "run: .venv/bin/python -m vdexdp.plugins.table > docs/vnl.md"


@pytest.mark.parametrize("scheme", registry.BUILTIN)
def test_example_parses(scheme: str) -> None:
    plugin = registry.get(scheme)
    assert plugin.scheme == scheme
    assert split(plugin.example)[0] == scheme
    assert registry.parse(plugin.example) == registry.parse(plugin.example), "a spec is comparable"


@pytest.mark.parametrize("scheme", registry.BUILTIN)
def test_every_option_can_be_reached(scheme: str) -> None:
    """Written out, a key means its own entry, whatever comes before it in the table."""
    plugin = registry.get(scheme)
    for option in plugin.options:
        word = f"{option.key}=1" if option.key else "1"
        body = f"[{word}]" if plugin.grammar in ("bracket", "nested") else f"/{word}"
        assert parse_body(body, plugin.grammar, plugin.options).options == {option.alias or option.key: "1"}
