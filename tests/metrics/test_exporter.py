# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows what ``vdexdp metrics`` says of two hosts under traffic, that promtool has nothing to criticise, and how it
fails.

Everything is real: two daemons, guests that ping each other, HTTP, files.
"""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric

from tests.control.rig import call, daemon, ping, plug, tunnel, until, wire
from tests.labkit import VDEXDP, TwoHosts, require_tool
from tests.metrics.rig import exporter, get, parse, value
from vdexdp.cli.metrics import parse_listen
from vdexdp.control import client, scrape
from vdexdp.control.abi import enum
from vdexdp.control.protocol import Bridge, socket_path
from vdexdp.errors import RequestError, VdexdpError
from vdexdp.lab import Namespace

NETWORK = "vxvde 234.0.0.1:14789 vni 1 via lan0"


def families(text: str) -> dict[str, tuple[str, str]]:
    """Name → type and help text."""
    found: dict[str, tuple[str, str]] = {}
    helps: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            _, _, name, words = line.split(" ", 3)
            helps[name] = words
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            found[name] = kind, helps[name]
    return found


def test_two_hosts_under_traffic(two_hosts: TwoHosts) -> None:
    left, right = two_hosts.left, two_hosts.right
    daemon(left)
    daemon(right)
    plugs = [
        plug(left, wire("g1"), tunnel()),
        plug(right, wire("g2"), tunnel()),
        plug(left, Bridge("null://"), tunnel()),
    ]
    assert ping(two_hosts.left_guest, "10.0.0.2", 5)
    assert ping(two_hosts.left_guest, "10.0.0.2", 2, 1450), "a guest's full frames fit on the underlay"
    process, url = exporter(left, "--sample", "0")
    text = get(left, url)
    samples = [one for one in parse(text) if one.labels.get("netns") in (left.full_name, None)]
    shown = call(left, "show")

    assert value(samples, "vdexdp_scrape_collector_success", collector="daemon") == 1
    assert {
        one.labels["collector"]: one.value for one in samples if one.name.endswith("collector_success")
    } == dict.fromkeys(("daemon", "info", "plugs", "switches", "ports", "uplinks", "exception_path"), 1)
    by_path = {
        path: value(samples, "vdexdp_port_receive_frames_total", port="g1", network=NETWORK, path=path)
        for path in ("tc", "xdp", "exception")
    }
    counted = next(one for one in shown["ports"] if one["name"] == "g1")["counters"]["rx_frames"]
    assert 7 <= by_path["tc"] <= counted["tc"]
    assert by_path["xdp"] == by_path["exception"] == 0
    assert value(samples, "vdexdp_lac_transmit_bytes_total", network=NETWORK, path="tc") > 2 * 1450
    assert value(samples, "vdexdp_lac_receive_frames_total", path="tc") >= 7
    assert value(samples, "vdexdp_uplink_receive_bytes_total", uplink="lan0", path="tc") > value(
        samples, "vdexdp_lac_receive_bytes_total", path="tc"
    ), "an uplink's bytes have the outer headers"
    overhead = value(samples, "vdexdp_uplink_transmit_bytes_total", path="tc") - value(
        samples, "vdexdp_lac_transmit_bytes_total", path="tc"
    )
    assert overhead == 50 * value(samples, "vdexdp_uplink_transmit_frames_total", path="tc") > 0
    assert value(samples, "vdexdp_switch_fdb_entries", network=NETWORK) == 2
    assert value(samples, "vdexdp_lac_peers", network=NETWORK) == 1
    assert value(samples, "vdexdp_port_fdb_learns_total", port="g1") == 1
    assert value(samples, "vdexdp_plug_up") == 2
    paths = [one for one in samples if one.name == "vdexdp_plug_end_info"]
    assert sorted(one.labels["path"] for one in paths) == ["tc", "tc", "tc", "user"]
    bridged = [
        one for one in samples if one.name == "vdexdp_port_transmit_frames_total" and one.labels["path"] == "user"
    ]
    assert len(bridged) == 1, "what goes through a plug's process is told apart"
    assert bridged[0].value > 0, "the ARP request was flooded to it"
    assert value(samples, "vdexdp_daemon_start_time_seconds") == pytest.approx(shown["since"])
    assert {one.labels["reason"] for one in samples if one.name == "vdexdp_lac_drops_total"} == {
        row.label for row in enum("drop_reason")
    }, "a reason that never happened is there with 0"
    assert right.full_name in {one.labels.get("netns") for one in parse(text)}, "all daemons of the host are asked"

    check_conventions(text)
    for one in plugs:
        one.close()
    assert process.stop() == 0, "SIGTERM is how it ends"


def check_conventions(text: str) -> None:
    checked = subprocess.run(
        [require_tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    for name, (kind, words) in families(text).items():
        assert name.startswith("vdexdp_")
        assert name.endswith("_total") == (kind == "counter")
        assert words.endswith("."), name
    reasons = families(text)["vdexdp_lac_drops_total"][1]
    assert all(row.help in reasons for row in enum("drop_reason")), "the help texts are those of bpf/abi.h"


def test_the_exception_path_and_its_worker(two_hosts: TwoHosts) -> None:
    left, right = two_hosts.left, two_hosts.right
    for host in (left, right):
        host.ip("link set lan0 mtu 1500")
        daemon(host)
    near, far = plug(left, wire("g1"), tunnel()), plug(right, wire("g2"), tunnel())
    assert ping(two_hosts.left_guest, "10.0.0.2", 5, 1472), "1500 bytes do not fit into 1500 bytes, and yet"
    _, url = exporter(left, "--netns", left.full_name)
    samples = parse(get(left, url))
    assert value(samples, "vdexdp_lac_exception_frames_total", cause="mtu") >= 5
    assert value(samples, "vdexdp_lac_exception_frames_total", cause="input") >= 5
    assert value(samples, "vdexdp_lac_transmit_frames_total", path="exception") >= 5
    assert value(samples, "vdexdp_exception_worker_up") == 1
    assert value(samples, "vdexdp_exception_drops_total", reason="queue_full") == 0
    assert value(samples, "vdexdp_exception_worker_packets_total", result="sent") >= 5
    assert value(samples, "vdexdp_exception_worker_packets_total", result="received") >= 5
    near.close()
    far.close()


def test_histograms_are_measured_while_somebody_asks(two_hosts: TwoHosts) -> None:
    left, right, guest = two_hosts.left, two_hosts.right, two_hosts.left_guest
    old = daemon(left)
    daemon(right)
    plugs = [plug(left, wire("g1"), tunnel()), plug(right, wire("g2"), tunnel())]
    assert ping(guest, "10.0.0.2", 1)
    assert not call(left, "show")["timings"], "off until somebody asks"
    _, url = exporter(left, "--netns", left.full_name, "--sample", "1")
    get(left, url)
    assert ping(guest, "10.0.0.2", 5)
    assert ping(guest, "fd00::2", 2)
    assert guest.run("bash", "-c", "</dev/tcp/10.0.0.2/9", check=False).returncode != 0, "refused: a RST is no answer"
    text = get(left, url)
    samples = parse(text)
    assert value(samples, "vdexdp_peer_rtt_seconds_count", network=NETWORK) == 7
    assert 7 * 1e-6 < value(samples, "vdexdp_peer_rtt_seconds_sum") < 7
    assert value(samples, "vdexdp_forwarding_seconds_count", program="port", path="tc") >= 7
    assert value(samples, "vdexdp_forwarding_seconds_count", program="uplink", path="tc") >= 7
    assert {one.labels["path"] for one in samples if one.name == "vdexdp_forwarding_seconds_count"} == {"tc"}
    check_conventions(text)

    with pytest.raises(VdexdpError, match="out of range"):
        call(left, "show", sample=-1)
    old.signal(signal.SIGKILL)
    old.wait()
    daemon(left)
    plugs[0].serve()  # hung up
    until(lambda: resumed(left, plugs[0]), "the plug to come back")
    assert not call(left, "show")["timings"], "a daemon whom nobody asked turns it off"
    get(left, url)
    assert call(left, "show")["timings"]["port_tc"]["sum"] > 0
    for one in plugs:
        one.close()


def resumed(host: Namespace, plugged: client.Plug) -> bool:
    """Whether a plug that has lost its daemon has found the next."""
    with host.entered():
        plugged.tick()
    if plugged.channel is not None and plugged.channel.wait(0):
        plugged.serve()
    return plugged.state == "plugged"


@pytest.fixture
def alone(two_hosts: TwoHosts) -> Namespace:
    """A host with a daemon and nothing plugged."""
    daemon(two_hosts.left)
    return two_hosts.left


def metrics(host: Namespace, *arguments: str) -> subprocess.CompletedProcess[str]:
    return host.run(*VDEXDP, "metrics", *arguments, check=False)


def test_a_daemon_that_hangs_or_died_is_said_so(
    alone: Namespace, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(scrape, "ANSWER_LIMIT", 0.3)
    server = alone.processes[-1]
    server.signal(signal.SIGSTOP)
    (answer,) = scrape.ask_all(alone.full_name)
    assert answer.shown is None
    assert "gave no answer within 0.3 s" in str(answer.error)
    assert 0.3 <= answer.seconds < 2
    server.signal(signal.SIGKILL)
    server.wait()
    request.addfinalizer(lambda: socket_path(alone.inode).unlink(missing_ok=True))
    _, url = exporter(alone, "--netns", alone.full_name)
    samples = parse(get(alone, url))
    assert value(samples, "vdexdp_scrape_collector_success", netns=alone.full_name, collector="daemon") == 0
    assert {one.name for one in samples} == {
        "vdexdp_build_info",
        "vdexdp_daemons",
        "vdexdp_scrape_collector_success",
        "vdexdp_scrape_collector_duration_seconds",
    }


def test_ipv6_and_a_port_in_use(alone: Namespace) -> None:
    _, url = exporter(alone, "--netns", alone.full_name, listen="[::1]:0")
    assert url.startswith("http://[::1]:")
    assert "vdexdp_daemon_info" in get(alone, url)
    port = url.split(":")[-1].split("/")[0]
    refused = metrics(alone, "--listen", f"[::1]:{port}")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"vdexdp: [::1]:{port}: Address already in use; choose another with --listen\n"
    refused = metrics(alone, "--listen", "198.51.100.1:9617")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    with alone.entered():
        request = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text;version=1.0.0"})
        with urllib.request.urlopen(request) as reply:
            assert reply.headers["Content-Type"].startswith("text/plain")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(url + "x")


def test_no_capabilities_are_needed(alone: Namespace) -> None:
    """As vdexdp-metrics.service runs it; it is root, and may not even look at process 1."""
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", *VDEXDP, "metrics")
    process = alone.spawn(*bare, "--listen", "127.0.0.1:0", "--netns", alone.full_name)
    url = process.wait_output("/metrics\n", 20).strip().rpartition(" ")[2]
    samples = parse(get(alone, url))
    assert value(samples, "vdexdp_scrape_collector_success", netns=alone.full_name, collector="daemon") == 1


def test_the_host_is_called_host_where_nobody_may_look(alone: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "_inode", lambda path: None if "/proc/1/" in str(path) else os.stat(path).st_ino)
    here = os.stat("/proc/self/ns/net").st_ino
    assert scrape.names()[here] == "host"
    assert scrape.find_netns("host") == here
    assert scrape.names()[alone.inode] == alone.full_name
    with alone.entered():
        assert scrape.names()[alone.inode] == alone.full_name


def test_a_namespace_that_is_not_there(alone: Namespace) -> None:
    refused = metrics(alone, "--netns", "vdxlab-nobody")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("vdexdp: vdxlab-nobody: no such network namespace")


def test_the_textfile(alone: Namespace, tmp_path: Path) -> None:
    path = tmp_path / "vdexdp.prom"
    path.write_text("old")
    os.chmod(tmp_path, 0o755)
    assert metrics(alone, "--textfile", str(path), "--netns", alone.full_name).returncode == 0
    assert value(parse(path.read_text()), "vdexdp_scrape_collector_success", collector="daemon") == 1
    assert path.stat().st_mode & 0o777 == 0o644, "node_exporter is not root"
    assert os.listdir(tmp_path) == ["vdexdp.prom"]

    for wrong, status, words in (
        (tmp_path / "none" / "x.prom", 1, "No such file or directory"),
        (tmp_path / "vdexdp.txt", 2, "end in .prom"),
    ):
        refused = metrics(alone, "--textfile", str(wrong))
        assert refused.returncode == status
        assert words in refused.stderr
        assert refused.stderr.count("\n") == 1


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 kB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_leaves_the_old_textfile(alone: Namespace, full_disk: Path) -> None:
    path = full_disk / "vdexdp.prom"
    path.write_text("old")
    (full_disk / "filler").write_bytes(bytes(8192))
    with pytest.raises(OSError, match="No space left"):
        (full_disk / "more").write_bytes(bytes(16384))
    here = alone.spawn(*VDEXDP, "metrics", "--textfile", str(path))
    assert here.wait(20) == 1
    assert here.output() == f"vdexdp: {path}: No space left on device\n"
    assert path.read_text() == "old"
    assert sorted(os.listdir(full_disk)) == ["filler", "more", "vdexdp.prom"]


@pytest.mark.parametrize("text", ["9617", "::1:9617", "localhost", "[::1]", ":9617", "127.0.0.1:x", "127.0.0.1:65536"])
def test_listen_is_an_address_and_a_port(text: str) -> None:
    with pytest.raises(RequestError, match=r"write it like|like \["):
        parse_listen(text)
    assert parse_listen("[::1]:9617") == ("::1", 9617)


def test_the_text_says_what_the_librarys_own_would(alone: Namespace) -> None:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    from vdexdp.control.metrics import DaemonCollector, exposition

    families = list(DaemonCollector(alone.full_name).collect())
    strange = CounterMetricFamily("strange", 'a "help"\\\nof two lines', labels=["label"])
    strange.add_metric(['"quoted"\\\n{é}'], (1 << 64) - 1)
    histogram = HistogramMetricFamily("histogram", "help", labels=["label"])
    histogram.add_metric(["x"], [("6.4e-08", 1), ("+Inf", 2)], 0.5)
    families += [strange, histogram]

    class Given:
        def collect(self) -> list[Metric]:
            return families

        def describe(self) -> list[Metric]:
            return []

    registry = CollectorRegistry()
    registry.register(Given())
    theirs, ours = generate_latest(registry).decode(), exposition(families).decode()
    assert plain(ours) == plain(theirs)
    comments = [line for line in theirs.splitlines() if line.startswith("#")]
    assert [line for line in ours.splitlines() if line.startswith("#")] == comments


def plain(text: str) -> list[tuple[str, list[tuple[str, str]], float]]:
    return sorted((one.name, sorted(one.labels.items()), one.value) for one in parse(text))


def test_a_daemon_of_another_version_fails_what_it_concerns(monkeypatch: pytest.MonkeyPatch, alone: Namespace) -> None:
    from vdexdp.control.metrics import DaemonCollector

    answers = scrape.ask_all(alone.full_name)
    assert answers[0].shown is not None
    del answers[0].shown["uplinks"]
    monkeypatch.setattr("vdexdp.control.metrics.ask_all", lambda only, sample: answers)
    found = {
        sample.labels["collector"]: sample.value
        for metric in DaemonCollector(alone.full_name).collect()
        for sample in metric.samples
        if sample.name == "vdexdp_scrape_collector_success"
    }
    assert {name for name, success in found.items() if not success} == {"switches", "uplinks"}
