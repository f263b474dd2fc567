# SPDX-License-Identifier: GPL-2.0-or-later
"""Draws the dashboards without Grafana: ``python -m grafana.picture FOLDER``, as root, with matplotlib at hand.

A lab with two hosts and half a minute of changing traffic, ``vdexdp metrics``, a real Prometheus; then the range
queries of every time series panel of every dashboard, drawn as that dashboard has them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from tests.control.rig import daemon, ping, plug, tunnel, wire
from tests.metrics.rig import Prometheus, exporter, get
from tests.metrics.test_grafana import DASHBOARDS, RULES, Chosen
from vdexdp.lab import Lab, Namespace

UNITS = {"bps": (1e-6, "Mbit/s"), "pps": (1, "frames/s"), "s": (1e6, "µs"), "ops": (1, "/s"), "percentunit": (100, "%")}


def traffic(guest: Namespace, far: Namespace) -> None:
    """TCP both ways, oversized pings, frames for the sender's own port, and a guest with one address after another."""
    guest.run("iperf3", "-c", "10.0.0.2", "-t", "7", "-b", "200M", check=False)
    guest.run("iperf3", "-c", "10.0.0.2", "-t", "7", "-b", "500M", "-R", check=False)
    for end in (guest, far):
        end.ip("link set eth0 mtu 9000")
    guest.run("ping", "-q", "-i", "0.01", "-c", "500", "-s", "8000", "10.0.0.2", check=False)
    for end in (guest, far):
        end.ip("link set eth0 mtu 1500")
    own = guest.mac("eth0")
    guest.ip(f"neighbour add 10.0.0.9 lladdr {own} dev eth0")
    guest.run("ping", "-q", "-i", "0.02", "-c", "200", "-W", "0.1", "10.0.0.9", check=False)
    for number in range(20):
        guest.ip(f"link set eth0 address 02:00:00:00:01:{number:02x}")
        guest.run("ping", "-q", "-i", "0.02", "-c", "10", "10.0.0.2", check=False)


def draw(path: Path, prometheus: Prometheus, netns: str, since: float, folder: Path) -> None:
    chosen = Chosen(path, prometheus, {"netns": netns})
    panels = [panel for panel in chosen.dashboard["panels"] if panel["type"] == "timeseries"]
    figure, axes = pyplot.subplots((len(panels) + 1) // 2, 2, figsize=(14, 1.7 * len(panels)), squeeze=False)
    for panel, axis in zip(panels, axes.flat, strict=False):
        factor, unit = UNITS.get(panel["fieldConfig"]["defaults"]["unit"], (1, ""))
        for target in panel["targets"]:
            arguments = {"query": chosen.fill(target["expr"]), "start": since, "end": time.time(), "step": 1}
            url = f"http://127.0.0.1:9090/api/v1/query_range?{urllib.parse.urlencode(arguments)}"
            for series in json.loads(get(prometheus.host, url))["data"]["result"]:
                values = [(float(at) - since, float(value) * factor) for at, value in series["values"]]
                if not any(value for _, value in values):
                    continue
                label = target["legendFormat"]
                for name, text in series["metric"].items():
                    label = label.replace(f"{{{{{name}}}}}", text.replace(netns, "host"))
                axis.plot(*zip(*values, strict=True), label=label, linewidth=1.3)
        axis.set_title(panel["title"], fontsize=10, loc="left")
        axis.set_ylabel(unit, fontsize=8)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7, frameon=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.suptitle(chosen.dashboard["title"], x=0.01, ha="left")
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    figure.savefig(folder / f"{path.stem}.png", dpi=70)
    pyplot.close(figure)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with Lab() as lab, tempfile.TemporaryDirectory() as scratch:
        left, right = lab.host("left"), lab.host("right")
        lab.underlay(left, right, mtu=1600)
        guest, far = lab.guest(left, "g1", 1, mtu=9000), lab.guest(right, "g2", 2, mtu=9000)
        for host in (left, right):
            daemon(host)
        plugs = [plug(left, wire("g1"), tunnel()), plug(right, wire("g2"), tunnel())]
        for end in (guest, far):
            end.ip("link set eth0 mtu 1500")
        assert ping(guest, "10.0.0.2")
        _, url = exporter(left, "--netns", left.full_name, "--sample", "16")
        prometheus = Prometheus(left, url, Path(scratch), RULES)
        far.spawn("iperf3", "-s")
        since = time.time()
        time.sleep(2)
        traffic(guest, far)
        for path in DASHBOARDS:
            draw(path, prometheus, left.full_name, since, folder)
        for one in plugs:
            one.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
