# SPDX-License-Identifier: GPL-2.0-or-later
"""From a VNL to its plugin: what is built in, what other packages bring, what is unknown, and what an import costs."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from vdexdp.errors import HostError, VnlError
from vdexdp.plugins import registry
from vdexdp.plugins.base import NoKernelEnd, Plugin
from vdexdp.plugins.null import NullPlugin


@pytest.mark.parametrize("scheme", registry.BUILTIN)
def test_every_built_in_scheme_is_complete(scheme: str) -> None:
    plugin = registry.get(scheme)
    assert isinstance(plugin, Plugin)
    assert plugin.scheme == scheme
    assert plugin.summary
    assert plugin.grammar
    assert registry.get(scheme) is plugin


@pytest.mark.parametrize("scheme", registry.BUILTIN)
def test_every_example_parses_into_something_comparable(scheme: str) -> None:
    example = registry.get(scheme).example
    assert example.startswith(f"{scheme}://")
    first, second = registry.parse(example), registry.parse(example)
    assert first == second
    assert hash(first.spec) == hash(second.spec)


def test_unknown_scheme() -> None:
    with pytest.raises(VnlError) as caught:
        registry.parse("vxvd://234.0.0.1")
    assert caught.value.exit_code == 2
    assert 'did you mean "vxvde"?' in str(caught.value)
    with pytest.raises(VnlError, match=r"known are .*vxlan"):
        registry.get("quite-another-thing")


def test_dash_is_the_stream() -> None:
    assert registry.parse("-").plugin.scheme == "stream"
    assert registry.parse("-").spec == registry.parse("stream://").spec


def test_third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        importlib.metadata.EntryPoint("nothing", "vdexdp.plugins.null:NullPlugin", registry.ENTRY_POINTS),
        importlib.metadata.EntryPoint("broken", "vdexdp.plugins.missing:NoPlugin", registry.ENTRY_POINTS),
        importlib.metadata.EntryPoint("strange", "vdexdp.plugins.base:Batch", registry.ENTRY_POINTS),
        importlib.metadata.EntryPoint("tap", "vdexdp.plugins.missing:Usurper", registry.ENTRY_POINTS),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    monkeypatch.setattr(registry, "_plugins", {})
    end = registry.parse("nothing://")
    assert isinstance(end.plugin, NullPlugin)
    assert isinstance(end.kernel_end(), NoKernelEnd)
    assert registry.schemes()[-3:] == ("broken", "nothing", "strange")
    with pytest.raises(HostError, match="does not load"):
        registry.get("broken")
    with pytest.raises(HostError, match="is not a"):
        registry.get("strange")
    assert registry.get("tap").scheme == "tap", "what is built in can't be replaced from outside"


def test_a_kernel_plug_imports_little() -> None:
    """What one plug more costs every host: no packages that are large, slow to import, or of other schemes."""
    code = (
        "import sys; from vdexdp.cli.vde_plug import parse_arguments; from vdexdp.plugins import registry;"
        "from vdexdp.control.path import plan; import vdexdp.control.client;"
        "plan(registry.parse('tap://t0'), registry.parse('vxvde://234.0.0.1')); print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "asyncio", "click", "pyroute2", "rich", "numpy", "bcc", "prometheus_client", "cryptography",
        "subprocess", "importlib.metadata", "ssl", "logging", "email", "http", "urllib.request",
        "vdexdp.plugins.vxstream", "vdexdp.plugins.mmsg", "vdexdp.plugins.vde", "vdexdp.cable",
    }  # fmt: skip
    assert not heavy.intersection(found)
