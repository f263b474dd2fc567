# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the dashboards: ``python grafana/make.py``.

A dashboard is a list of panels, a panel one row of text below: what Grafana wants besides is the same for all of them.
tests/metrics/test_grafana.py shows that the files are what this makes, and that every query returns data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent / "dashboards"
RATE = "[$__rate_interval]"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """``queries`` are pairs of PromQL and legend; ``unit`` as Grafana names it; ``width`` of 24 columns."""

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]
    about: str = ""
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    width: int = 12

    @property
    def height(self) -> int:
        return 4 if self.kind == "stat" else 8

    def render(self, number: int, x: int, y: int) -> dict[str, Any]:
        instant = self.kind != "timeseries"
        targets = [
            {"refId": chr(65 + at), "expr": expr, "legendFormat": legend, "datasource": SOURCE, "instant": instant}
            | ({"format": "table"} if self.kind == "table" else {})
            for at, (expr, legend) in enumerate(self.queries)
        ]
        options: dict[str, Any] = {}
        if self.kind == "timeseries":
            options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        elif self.kind == "stat":
            options = {"colorMode": "none", "graphMode": "none", "reduceOptions": {"calcs": ["lastNotNull"]}}
        hidden = {"Time": True, "Value": True, "__name__": True, "job": True, "instance": True}
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.about,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": {"unit": self.unit, "min": 0}, "overrides": []},
            "options": options,
            "targets": targets,
        } | (
            {"transformations": [{"id": "organize", "options": {"excludeByName": hidden}}]}
            if self.kind == "table"
            else {}
        )


@dataclass(frozen=True)
class Dashboard:
    """``variables`` are pairs of a name and the query for its values, chosen from the left to the right."""

    uid: str
    title: str
    panels: Sequence[Panel]
    variables: Sequence[tuple[str, str]] = field(default_factory=tuple)

    def render(self) -> dict[str, Any]:
        panels, x, y, tallest = [], 0, 0, 0
        for number, panel in enumerate(self.panels, 1):
            if x + panel.width > 24:
                x, y, tallest = 0, y + tallest, 0
            panels.append(panel.render(number, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
        chosen = [
            {
                "name": name,
                "type": "query",
                "datasource": SOURCE,
                "query": {"query": query, "refId": name},
                "refresh": 2,
                "sort": 1,
            }
            for name, query in self.variables
        ]
        links = {"type": "dashboards", "title": "vdexdp", "tags": ["vdexdp"], "asDropdown": True, "includeVars": True}
        return {
            "uid": self.uid,
            "title": self.title,
            "tags": ["vdexdp"],
            "schemaVersion": 39,
            "editable": True,
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "templating": {"list": [source, *chosen]},
            "links": [links],
            "panels": panels,
        }


def stat(title: str, query: str, unit: str = "short", about: str = "") -> Panel:
    return Panel(title, unit, [(query, "")], about, "stat", 4)


def two_ways(scope: str, unit: str, selector: str, by: str = "path") -> list[tuple[str, str]]:
    """Rates in and out; bytes become bits."""
    bits = "8 * " if unit == "bytes" else ""
    return [
        (f"{bits}sum by ({by}) (rate(vdexdp_{scope}_{way}_{unit}_total{selector}{RATE}))", f"{word} {{{{{by}}}}}")
        for way, word in (("receive", "in"), ("transmit", "out"))
    ]


def quantiles(name: str, by: str, legend: str, selector: str = "") -> list[tuple[str, str]]:
    """Median and 99 % of a histogram."""
    return [
        (f"histogram_quantile({share}, sum by (le, {by}) (rate({name}_bucket{selector}{RATE})))", f"{word} {legend}")
        for share, word in ((0.5, "median"), (0.99, "99 %"))
    ]


OVERVIEW = Dashboard(
    "vdexdp-overview",
    "vdexdp / overview",
    [
        stat("Daemons that answer", 'sum(vdexdp_scrape_collector_success{collector="daemon"})'),
        stat("Plugs", "sum(vdexdp_plug_up)"),
        stat("Ports", "sum(vdexdp_switch_ports)"),
        stat("LACs", "count(vdexdp_lac_info)"),
        stat("Tunnel peers", "sum(vdexdp_lac_peers)"),
        stat("FDB entries", "sum(vdexdp_switch_fdb_entries)"),
        Panel("Bits from ports, by path", "bps", two_ways("port", "bytes", "")[:1], "What local ports handed in."),
        Panel(
            "Bits on LACs", "bps", two_ways("lac", "bytes", "", "network"), "Inner frames, in and out of the tunnel."
        ),
        Panel("Frames from ports, by path", "pps", two_ways("port", "frames", "")[:1]),
        Panel("Frames on uplinks", "pps", two_ways("uplink", "frames", "", "uplink")),
        Panel(
            "Drops",
            "pps",
            [(f'sum by (reason) (rate({{__name__=~"vdexdp_(port|lac)_drops_total"}}{RATE}))', "{{reason}}")],
            "Of ports and LACs, by reason; the reasons are explained in the HELP of the metric.",
        ),
        Panel(
            "Share of LAC frames on the exception path",
            "percentunit",
            [
                (
                    f'sum by (network) (rate(vdexdp_lac_transmit_frames_total{{path="exception"}}{RATE}))'
                    f" / clamp_min(sum by (network) (rate(vdexdp_lac_transmit_frames_total{RATE})), 1)",
                    "{{network}}",
                )
            ],
            "Through a UDP socket in userspace: fragments, nodes on this same host.",
        ),
        Panel("Ends of plugs", "short", [("vdexdp_plug_end_info", "")], "Which path every end takes.", "table"),
        Panel("Daemons", "short", [("vdexdp_daemon_info", "")], "Version and kernel.", "table"),
        Panel(
            "FDB filling",
            "percentunit",
            [("vdexdp_fdb_slots_used / vdexdp_fdb_slots", "{{netns}}")],
            "At 100 % the least recently used entries are evicted.",
        ),
        Panel(
            "Time in the programs",
            "s",
            quantiles("vdexdp_forwarding_seconds", "program, path", "{{program}} {{path}}"),
            "Of sampled frames: look-ups, learning, encapsulation. Needs vdexdp metrics --sample.",
        ),
        Panel("Cost of scrapes", "s", [("vdexdp_scrape_collector_duration_seconds", "{{netns}} {{collector}}")]),
    ],
)

ONE_LAC = '{netns="$netns",network="$network"}'
LAC = Dashboard(
    "vdexdp-lac",
    "vdexdp / one LAC",
    [
        stat("Ports", f"vdexdp_switch_ports{ONE_LAC}"),
        stat("Plugs", f"vdexdp_switch_plugs{ONE_LAC}"),
        stat("FDB entries", f"vdexdp_switch_fdb_entries{ONE_LAC}"),
        stat("Peers", f"vdexdp_lac_peers{ONE_LAC}"),
        stat("Nodes on this host", f"vdexdp_lac_local_nodes{ONE_LAC}"),
        stat("Flooded frames", f"sum(rate(vdexdp_port_flooded_frames_total{ONE_LAC}{RATE}))", "pps"),
        Panel("Bits through the tunnel, by path", "bps", two_ways("lac", "bytes", ONE_LAC)),
        Panel("Frames through the tunnel, by path", "pps", two_ways("lac", "frames", ONE_LAC)),
        Panel("Bits of its ports", "bps", two_ways("port", "bytes", ONE_LAC, "port")),
        Panel(
            "Learning",
            "ops",
            [
                (f'sum(rate({{__name__=~"vdexdp_(port|lac)_fdb_{name}_total",{ONE_LAC[1:]}{RATE}))', word)
                for name, word in (
                    ("learns", "new"),
                    ("moves", "moved"),
                    ("limited", "not learnt, share used up"),
                    ("expired", "too old"),
                )
            ],
            "A MAC that moves all the time is used twice, or there is a loop.",
        ),
        Panel(
            "Exception path, by cause",
            "pps",
            [(f"sum by (cause) (rate(vdexdp_lac_exception_frames_total{ONE_LAC}{RATE}))", "{{cause}}")],
        ),
        Panel("Drops", "pps", [(f"sum by (reason) (rate(vdexdp_lac_drops_total{ONE_LAC}{RATE}))", "{{reason}}")]),
        Panel(
            "Round trips to peers",
            "s",
            quantiles("vdexdp_peer_rtt_seconds", "network", "{{network}}", ONE_LAC),
            "From TCP SYN or ICMP echo to its answer, the answering guest included. Needs vdexdp metrics --sample.",
        ),
        Panel("Address and uplink", "short", [(f"vdexdp_lac_info{ONE_LAC}", "")], "", "table"),
        Panel("Ports", "short", [(f"vdexdp_port_info{ONE_LAC}", "")], "", "table"),
    ],
    [
        ("netns", "label_values(vdexdp_lac_info, netns)"),
        ("network", 'label_values(vdexdp_lac_info{netns="$netns"}, network)'),
    ],
)

ONE_PORT = '{netns="$netns",port="$port"}'
PORT = Dashboard(
    "vdexdp-port",
    "vdexdp / one port",
    [
        stat("MTU", f"vdexdp_port_mtu_bytes{ONE_PORT}", "decbytes"),
        stat("New MACs", f"sum(vdexdp_port_fdb_learns_total{ONE_PORT})"),
        stat("Moves", f"sum(vdexdp_port_fdb_moves_total{ONE_PORT})"),
        stat("Not learnt", f"sum(vdexdp_port_fdb_limited_total{ONE_PORT})"),
        stat("Drops", f"sum(vdexdp_port_drops_total{ONE_PORT})"),
        stat(
            "Up since",
            f'vdexdp_plug_start_time_seconds{{netns="$netns"}} * on (netns, plug) vdexdp_port_info{ONE_PORT} * 1000',
            "dateTimeAsIso",
        ),
        Panel("Bits, by path", "bps", two_ways("port", "bytes", ONE_PORT), "in: from the port into the switch."),
        Panel("Frames, by path", "pps", two_ways("port", "frames", ONE_PORT)),
        Panel(
            "Drops, by reason",
            "pps",
            [(f"sum by (reason) (rate(vdexdp_port_drops_total{ONE_PORT}{RATE}))", "{{reason}}")],
        ),
        Panel(
            "What happened to its frames",
            "pps",
            [
                (f"sum(rate(vdexdp_port_flooded_frames_total{ONE_PORT}{RATE}))", "flooded"),
                (f"sum(rate(vdexdp_port_frames_left_to_tc_total{ONE_PORT}{RATE}))", "left by XDP to tc"),
            ],
        ),
        Panel("Path and plug", "short", [(f"vdexdp_port_info{ONE_PORT}", "")], "", "table", 24),
    ],
    [
        ("netns", "label_values(vdexdp_port_info, netns)"),
        ("port", 'label_values(vdexdp_port_info{netns="$netns"}, port)'),
    ],
)

DROPS = Dashboard(
    "vdexdp-drops",
    "vdexdp / drops and exceptions",
    [
        *(
            Panel(
                title,
                "pps",
                [(f"sum by (netns, reason) (rate(vdexdp_{name}_drops_total{RATE}))", "{{netns}} {{reason}}")],
            )
            for title, name in (
                ("Drops at ports", "port"),
                ("Drops at tunnels", "lac"),
                ("Drops at uplinks", "uplink"),
                ("Losses on the exception path", "exception"),
            )
        ),
        Panel(
            "Ports that drop most",
            "pps",
            [(f"topk(10, sum by (netns, port) (rate(vdexdp_port_drops_total{RATE})))", "{{netns}} {{port}}")],
        ),
        Panel(
            "Exception path, by cause",
            "pps",
            [(f"sum by (netns, cause) (rate(vdexdp_lac_exception_frames_total{RATE}))", "{{netns}} {{cause}}")],
            "Each of these costs a trip through a process; mtu goes away with a larger MTU on the uplink.",
        ),
        Panel(
            "Exception worker",
            "pps",
            [(f"sum by (netns, result) (rate(vdexdp_exception_worker_packets_total{RATE}))", "{{netns}} {{result}}")],
        ),
        Panel(
            "Exception workers",
            "short",
            [
                ("vdexdp_exception_worker_up", "{{netns}} answers"),
                ("vdexdp_exception_worker_restarts_total", "{{netns}} replaced"),
            ],
        ),
    ],
)

DASHBOARDS = {"overview": OVERVIEW, "lac": LAC, "port": PORT, "drops": DROPS}


def main() -> None:
    for name, dashboard in DASHBOARDS.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(dashboard.render(), indent=2) + "\n")


if __name__ == "__main__":
    main()
