# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that a scrape of 100 ports and 10,000 FDB entries, over HTTP and from real maps, takes less than 50 ms.

Of CPU time on average, whatever else the machine does; and from the request to the last byte when it is left alone.
"""

from __future__ import annotations

import ctypes
import resource
import time
from collections.abc import Iterator

import pytest

from tests.control.rig import PLUGS, call, daemon, plug, tunnel, wire
from tests.metrics.rig import exporter, get, parse, value
from vdexdp.control.abi import S
from vdexdp.control.bpf_map import Map
from vdexdp.control.sockets import swap16, words
from vdexdp.lab import Lab
from vdexdp.lab.measure import cpu_seconds

PORTS, ENTRIES, PEERS = 100, 10_000, 50
SCRAPES = 20
LIMIT = 0.050


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """This process holds the leases of all plugs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    while PLUGS:
        PLUGS.pop().close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_a_scrape_of_100_ports_and_10000_entries(lab: Lab, many_descriptors: None) -> None:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    for number in range(PORTS):
        host.ip(f"link add name d{number} mtu 1400 type veth peer name f{number}")
    server = daemon(host)
    plugs = [plug(host, wire(f"d{number}"), tunnel()) for number in range(PORTS)]
    shown = call(host, "show")
    (network,) = shown["switches"]
    maps = plugs[0].reply.fds
    fdb = Map(maps["map:fdb"], S["fdb_key"], S["fdb_entry"])
    ports = Map(maps["map:ports"], ctypes.c_uint32, S["port_info"])
    switches = Map(maps["map:switches"], ctypes.c_uint32, S["switch_info"])
    generation = switches.lookup(network["id"]).generation
    tunnel_index = network["tunnel"]
    now = time.monotonic_ns()
    for number in range(ENTRIES):
        key = S["fdb_key"](switch_id=network["id"])
        key.mac = type(key.mac)(2, 0, *number.to_bytes(4, "big"))
        far = number % 2
        index = tunnel_index if far else network["ports"][number % PORTS]
        entry = S["fdb_entry"](last_seen=now, port=index, generation=generation + ports.lookup(index).generation)
        if far:
            entry.addr = type(entry.addr)(*words(f"192.0.2.{100 + number // 2 % PEERS}"))
            entry.udp_port = swap16(5000)
        fdb.update(key, entry)
    assert call(host, "show")["switches"][0]["fdb"] == ENTRIES

    process, url = exporter(host, "--netns", host.full_name)
    samples = parse(get(host, url))
    assert value(samples, "vdexdp_switch_fdb_entries") == ENTRIES
    assert value(samples, "vdexdp_lac_peers") == PEERS
    assert value(samples, "vdexdp_switch_ports") == PORTS
    assert len({one.labels["port"] for one in samples if one.name == "vdexdp_port_drops_total"}) == PORTS

    before = cpu_seconds(server.pid), cpu_seconds(process.pid)
    took = []
    for _ in range(SCRAPES):
        start = time.perf_counter()
        get(host, url)
        took.append(time.perf_counter() - start)
    costs = cpu_seconds(server.pid) - before[0], cpu_seconds(process.pid) - before[1]
    assert sum(costs) / SCRAPES < LIMIT, f"CPU seconds of {SCRAPES} scrapes, daemon and exporter: {costs}"
    assert min(took) < LIMIT
