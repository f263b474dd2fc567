# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that every query of every dashboard and every alert returns data from a real Prometheus under real traffic.

Two hosts with daemons, guests that ping each other with small and with oversized packets, ``vdexdp metrics``, and
Debian's prometheus, which scrapes it every second with this repository's rules.
"""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.control.rig import daemon, ping, plug, tunnel, wire
from tests.labkit import TwoHosts, require_tool
from tests.metrics.rig import Prometheus, exporter, get

GRAFANA = Path(__file__).parents[2] / "grafana"
RULES = GRAFANA / "prometheus" / "vdexdp.rules.yml"
RUNBOOK = GRAFANA.parent / "docs" / "runbook.md"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
COMPARISON = re.compile(r"(.*) (?:==|>|<) [0-9.]+$", re.S)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([require_tool("promtool"), *arguments], capture_output=True, text=True, check=False)


def test_the_rules_are_sound_and_fire() -> None:
    checked = promtool("check", "rules", str(RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    fired = promtool("test", "rules", str(GRAFANA / "prometheus" / "vdexdp.test.yml"))
    assert fired.returncode == 0, fired.stdout + fired.stderr


def test_the_dashboards_are_what_their_source_makes() -> None:
    made = runpy.run_path(str(GRAFANA / "make.py"))["DASHBOARDS"]
    assert {path.stem: json.loads(path.read_text()) for path in DASHBOARDS} == {
        name: dashboard.render() for name, dashboard in made.items()
    }, "run: python grafana/make.py"
    assert len({dashboard.uid for dashboard in made.values()}) == len(made)


class Chosen:
    """A dashboard with its variables set to the first value that Prometheus has for them, as Grafana does it."""

    def __init__(self, path: Path, prometheus: Prometheus, preset: dict[str, str]) -> None:
        self.dashboard = json.loads(path.read_text())
        self.values = {"__rate_interval": "5s", **preset}
        for variable in self.dashboard["templating"]["list"]:
            if variable["type"] == "query" and variable["name"] not in self.values:
                query = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
                assert query
                found = {one["metric"][query[2]] for one in prometheus.query(self.fill(query[1]))}
                assert found, f"no value for ${variable['name']}"
                self.values[variable["name"]] = sorted(found)[0]

    def fill(self, expression: str) -> str:
        return re.sub(r"\$(\w+)", lambda match: self.values[match[1]], expression)

    def queries(self) -> list[tuple[str, str]]:
        """Title of the panel, and expression."""
        return [
            (panel["title"], self.fill(target["expr"]))
            for panel in self.dashboard["panels"]
            for target in panel["targets"]
        ]


@pytest.mark.slow
def test_every_query_returns_data(two_hosts: TwoHosts, tmp_path: Path) -> None:
    left, right = two_hosts.left, two_hosts.right
    for host in (left, right):
        host.ip("link set lan0 mtu 1500")
        daemon(host)
    plugs = [plug(left, wire("g1"), tunnel()), plug(right, wire("g2"), tunnel())]
    assert ping(two_hosts.left_guest, "10.0.0.2")
    _, url = exporter(left, "--netns", left.full_name, "--sample", "1")
    prometheus = Prometheus(left, url, tmp_path, RULES)
    sizes = ("56", "1472")
    traffic = [two_hosts.left_guest.spawn("ping", "-q", "-i", "0.05", "-s", size, "10.0.0.2") for size in sizes]
    time.sleep(4)

    empty = []
    rates: dict[str, list[float]] = {}
    for path in DASHBOARDS:
        chosen = Chosen(path, prometheus, {"netns": left.full_name})
        for title, expression in chosen.queries():
            found = prometheus.query(expression)
            rates.setdefault(f"{path.stem}: {title}", []).extend(float(one["value"][1]) for one in found)
            if not found:
                empty.append(f"{path.name}: {title}: {expression}")
    assert not empty, "\n".join(empty)
    for name in ("overview: Bits on LACs", "lac: Exception path, by cause", "lac: Round trips to peers", "lac: Peers"):
        assert max(rates[name]) > 0, name
    assert not [name for name, values in rates.items() if any(value != value for value in values)], "no NaN"

    rules = alerts(prometheus)
    assert set(rules) == set(re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.M)), "one chapter for each alert"
    for name, rule in rules.items():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert rule["lastError"] == ""
        compared = COMPARISON.fullmatch(rule["query"])
        assert compared, rule["query"]
        assert prometheus.query(compared[1]), f"{name}: no data"
        ours = [one for one in prometheus.query(rule["query"]) if one["metric"].get("netns") == left.full_name]
        assert not ours, f"{name} fires in a healthy network: {ours}"
    for pinging in traffic:
        pinging.stop()
    for one in plugs:
        one.close()


def alerts(prometheus: Prometheus) -> dict[str, dict[str, Any]]:
    """The alert rules as Prometheus has read them, evaluated once at least."""
    for _ in range(50):
        body = json.loads(get(prometheus.host, "http://127.0.0.1:9090/api/v1/rules"))
        rules = [rule for group in body["data"]["groups"] for rule in group["rules"]]
        if all(rule["health"] == "ok" for rule in rules):
            break
        time.sleep(0.1)
    return {rule["name"]: {"lastError": "", **rule} for rule in rules}
