# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of the metrics share: an exporter, its samples, and a Prometheus that scrapes it."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.labkit import VDEXDP, require_tool
from vdexdp.lab import Namespace, wait_until
from vdexdp.lab.namespace import Process

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Sample:
    name: str
    labels: Mapping[str, str]
    value: float


def parse(text: str) -> list[Sample]:
    """The samples of a text exposition; a line that is none fails the test."""
    found = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = _SAMPLE.match(line)
        assert match, f"not a sample: {line}"
        found.append(Sample(match[1], dict(_LABEL.findall(match[2] or "")), float(match[3])))
    return found


def value(samples: list[Sample], name: str, **labels: str) -> float:
    """The sum of the samples of that name that have these labels.  None there fails the test."""
    found = [one.value for one in samples if one.name == name and labels.items() <= one.labels.items()]
    assert found, f"no {name} with {labels}"
    return sum(found)


def get(host: Namespace, url: str) -> str:
    """An HTTP GET from inside a namespace."""
    with host.entered(), urllib.request.urlopen(url, timeout=10) as reply:
        data: bytes = reply.read()
        return data.decode()


def exporter(host: Namespace, *options: str, listen: str = "127.0.0.1:0") -> tuple[Process, str]:
    """A running ``vdexdp metrics`` and its URL."""
    process = host.spawn(*VDEXDP, "metrics", "--listen", listen, *options)
    said = process.wait_output("/metrics\n", 20)
    return process, said.strip().rpartition(" ")[2]


class Prometheus:
    """A real one that scrapes one target every second, with the rules of this repository."""

    def __init__(self, host: Namespace, target: str, folder: Path, rules: Path) -> None:
        self.host = host
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [
                {"job_name": "vdexdp", "static_configs": [{"targets": [urllib.parse.urlsplit(target).netloc]}]}
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        arguments = ("--config.file", str(folder / "prometheus.yml"), "--storage.tsdb.path", str(folder / "data"))
        self.process = host.spawn(require_tool("prometheus"), *arguments, "--web.listen-address", "127.0.0.1:9090")
        wait_until(self.scraped, 20, "Prometheus to have scraped once", 0.1)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector that an expression gives now."""
        arguments = urllib.parse.urlencode({"query": expression})
        body = json.loads(get(self.host, f"http://127.0.0.1:9090/api/v1/query?{arguments}"))
        assert body["status"] == "success", body
        found: list[dict[str, Any]] = body["data"]["result"]
        return found

    def scraped(self) -> bool:
        try:
            return bool(self.query('up{job="vdexdp"} == 1'))
        except OSError:
            return False
