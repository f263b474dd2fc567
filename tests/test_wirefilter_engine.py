# SPDX-License-Identifier: GPL-2.0-or-later
"""The wire's engine, with a seeded generator and a clock of the test's own.

Shows that each fault happens as often, as long and as late as it was told to, within four standard deviations of
20,000 frames; that directions, fifo order, states of the Markov chain and bounds hold; and that values are read as
stock reads them.
"""

from __future__ import annotations

import statistics
from math import sqrt
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdexdp.errors import RequestError
from vdexdp.wirefilter.commands import After, Interpreter, Session
from vdexdp.wirefilter.engine import BACKLOG, COPIES_MAX, Engine
from vdexdp.wirefilter.values import LR, RL, Parameter, WireValue, parse_setting

FRAMES = 20_000


def wire(overhead: int = 0, **values: str) -> Engine:
    engine = Engine(Random(20240229), overhead)
    for name, text in values.items():
        engine.chain.node.set(Parameter[name.upper()], parse_setting(text))
    return engine


def number(index: int, size: int = 60) -> bytes:
    return index.to_bytes(4, "big").ljust(size, b"\0")


def arrived(engine: Engine, direction: int, now: float) -> list[bytes]:
    got: list[bytes] = []

    def take(frame: bytes) -> bool:
        got.append(frame)
        return True

    engine.due(direction, now, take)
    return got


def passed(engine: Engine, count: int = FRAMES, direction: int = LR) -> list[int]:
    """The numbers of the frames that arrive when ``count`` are sent, one each second."""
    got = []
    for index in range(count):
        engine.submit(direction, number(index), float(index))
        got += [int.from_bytes(frame[:4], "big") for frame in arrived(engine, direction, float(index))]
    return got


def assert_rate(found: int, expected: float, trials: int = FRAMES) -> None:
    deviation = sqrt(trials * expected * (1 - expected))
    assert abs(found - trials * expected) < 4 * deviation


def test_transparent_until_told() -> None:
    engine = wire()
    assert engine.transparent(LR)
    engine.chain.node.set(Parameter.DELAY, parse_setting("LR5"))
    assert not engine.transparent(LR)
    assert engine.transparent(RL)
    engine.chain.node.set(Parameter.DELAY, parse_setting("0"))
    assert engine.transparent(LR)


@pytest.mark.parametrize("percent", [0.5, 10, 50])
def test_loss(percent: float) -> None:
    engine = wire(loss=f"LR{percent}")
    got = passed(engine)
    assert_rate(FRAMES - len(got), percent / 100)
    assert engine.drops["loss"] == FRAMES - len(got)
    assert got == sorted(got)
    assert len(passed(engine, 500, RL)) == 500


def test_total_loss() -> None:
    assert not passed(wire(loss="100"), 1000)


def test_bursts() -> None:
    """Gilbert's model: the same mean loss, in bursts of the given mean length."""
    got = set(passed(wire(loss="10", lostburst="8"), 100_000))
    bursts = []
    length = 0
    for index in range(100_000):
        if index not in got:
            length += 1
        elif length:
            bursts.append(length)
            length = 0
    assert 0.08 < 1 - len(got) / 100_000 < 0.12
    assert 7 < statistics.mean(bursts) < 9


def test_duplicates() -> None:
    """Each copy may be copied again: percent p gives p/(1-p) copies in the mean."""
    got = passed(wire(dup="20"))
    assert set(got) == set(range(FRAMES))
    assert abs(len(got) - FRAMES / 0.8) < 4 * sqrt(FRAMES * 0.2) / 0.8
    assert len(passed(wire(dup="100"), 1)) == COPIES_MAX


@pytest.mark.parametrize(("text", "mean", "deviation"), [("50+20", 50, 20 / sqrt(3)), ("50+20N", 50, 20 / 3)])
def test_delay(text: str, mean: float, deviation: float) -> None:
    engine = wire(delay=text)
    delays = []
    for index in range(FRAMES):
        engine.submit(LR, number(index), float(index))
        when = engine.next_time(LR)
        assert when is not None
        delays.append((when - index) * 1000)
        assert arrived(engine, LR, when)
    assert abs(statistics.mean(delays) - mean) < 4 * deviation / sqrt(FRAMES)
    assert abs(statistics.stdev(delays) - deviation) < 0.03 * deviation
    if "N" not in text:
        assert min(delays) >= 30
        assert max(delays) <= 70


@pytest.mark.parametrize("fifo", [True, False])
def test_order(fifo: bool) -> None:
    engine = wire(delay="100+100")
    engine.fifo = fifo
    for index in range(200):
        engine.submit(LR, number(index), index / 1000)
    got = arrived(engine, LR, 10)
    assert len(got) == 200
    assert (got == sorted(got)) is fifo


def test_fifo_is_per_direction() -> None:
    engine = wire(delay="LR1000")
    engine.submit(LR, number(1), 0.0)
    engine.submit(RL, number(2), 0.0)
    assert arrived(engine, RL, 0.0) == [number(2)]
    assert not arrived(engine, LR, 0.999)


def test_undelayed_does_not_overtake() -> None:
    engine = wire(delay="LR1000")
    engine.submit(LR, number(1), 0.0)
    engine.chain.node.set(Parameter.DELAY, parse_setting("0"))
    assert not engine.transparent(LR)
    engine.submit(LR, number(2), 0.1)
    assert not arrived(engine, LR, 0.5)
    assert arrived(engine, LR, 1.0) == [number(1), number(2)]


def test_refused_frame_stays() -> None:
    engine = wire(delay="1")
    engine.submit(LR, number(1), 0.0)
    engine.due(LR, 1.0, lambda frame: False)
    assert engine.waiting(LR) == 1
    assert arrived(engine, LR, 1.0) == [number(1)]
    assert engine.waiting_bytes == [0, 0]


def test_bandwidth_queues() -> None:
    """1000 frames of 1000 bytes at 100 KiB/s take 1000 * 1000 / 102400 seconds, and the sender never waits."""
    engine = wire(bandwidth="100K")
    for index in range(1000):
        engine.submit(LR, number(index, 1000), 0.0)
        assert engine.blocked(LR, 0.0) == 0
    half = 1000 * 1000 / 102400 / 2
    assert abs(len(arrived(engine, LR, half)) - 500) <= 1
    assert len(arrived(engine, LR, 2 * half + 0.001)) == 500


def test_speed_blocks_the_sender() -> None:
    engine = wire(speed="1000")
    engine.submit(LR, number(1, 500), 0.0)
    assert engine.blocked(LR, 0.0) == pytest.approx(0.5)
    assert engine.blocked(LR, 0.4) == pytest.approx(0.1)
    assert engine.blocked(LR, 0.6) == 0
    assert engine.blocked(RL, 0.0) == 0
    engine.chain.node.set(Parameter.SPEED, parse_setting("0"))
    assert engine.blocked(LR, 0.0) == 0
    assert not arrived(engine, LR, 0.49)
    assert arrived(engine, LR, 0.51)


def test_bufsize() -> None:
    engine = wire(overhead=2, bandwidth="1000", bufsize="1020")
    for index in range(20):
        engine.submit(LR, number(index, 100), 0.0)
    assert engine.drops["bufsize"] == 10
    assert engine.waiting_bytes == [1020, 0]
    assert len(arrived(engine, LR, 100.0)) == 10


def test_memory_is_bounded() -> None:
    engine = wire(delay="1000000")
    frame = bytes(9000)
    for _ in range(BACKLOG // len(frame) + 10):
        engine.submit(LR, frame, 0.0)
    assert engine.waiting_bytes[LR] <= BACKLOG
    assert engine.drops["bufsize"] == 10


@pytest.mark.parametrize(("overhead", "longest"), [(0, 100), (2, 98)])
def test_mtu(overhead: int, longest: int) -> None:
    engine = wire(overhead, mtu="100")
    engine.submit(LR, number(1, longest), 0.0)
    engine.submit(LR, number(2, longest + 1), 0.0)
    assert arrived(engine, LR, 0.0) == [number(1, longest)]
    assert engine.drops["mtu"] == 1


@pytest.mark.parametrize("noise", ["100", "1M"])
def test_noise(noise: str) -> None:
    """As many damaged bits per megabyte as were asked for, in the mean, all over the frame."""
    engine = wire(noise=noise)
    count, size = 2000, 1000
    flipped = 0
    places = []
    for index in range(count):
        engine.submit(LR, bytes(size), float(index))
        for byte, value in enumerate(arrived(engine, LR, float(index))[0]):
            if value:
                flipped += value.bit_count()
                places.append(byte)
    expected = count * size * parse_setting(noise).value.value / (1 << 20)
    if noise == "100":
        assert abs(flipped - expected) < 4 * sqrt(expected)
    assert flipped > 0
    assert abs(statistics.mean(places) - size / 2) < 4 * size / sqrt(12 * len(places))


def test_markov_chain() -> None:
    """A link that is dead in node 1, and stays 3 steps there for 7 in node 0, in the mean."""
    engine = wire()
    manage = Interpreter(engine, lambda: 0.0)
    for line in ("markov-numnodes 2", "markov-time 10", "loss 100[1]", "setedge 0,1,10", "setedge 1,0,23.3333"):
        assert manage.execute(line, Session()).error == 0
    dead = 0
    for step in range(1, FRAMES + 1):
        engine.chain.step(step / 100)
        dead += engine.chain.current
    assert 0.25 < dead / FRAMES < 0.35
    engine.chain.current = 1
    assert not passed(engine, 10)
    engine.chain.current = 0
    assert len(passed(engine, 10)) == 10


def test_markov_resize() -> None:
    engine = wire()
    manage = Interpreter(engine, lambda: 5.0)
    session = Session()

    def say(line: str) -> tuple[str, ...]:
        return manage.execute(line, session).lines

    for line in ("markov-numnodes 3", "setedge 0,1,30", "setedge 0,2,20", "markov-name 1,bad day", "markov-setnode 2"):
        assert say(line) == ("1000 Success",)
    assert engine.chain.next_step == pytest.approx(5.1)
    assert say("showedges 0")[1:4] == (
        'Edge 0 ->0  ""->"" weight 50',
        'Edge 0 ->1  ""->"bad day" weight 30',
        'Edge 0 ->2  ""->"" weight 20',
    )
    assert say("markov-numnodes 2") == ("1000 Success",)
    assert say("showcurrent")[1] == 'Current Markov Node 0 "" (0,..,1)'
    assert engine.chain.weight(0, 0) == 70
    assert say("setedge 0,1,101")[-1].startswith("1022")
    assert say("markov-setnode 2")[-1].startswith("1022")
    assert say("delay 5[2]")[-1].startswith("1022")
    assert say("markov-numnodes 1") == ("1000 Success",)
    assert engine.chain.next_step is None


def test_script(tmp_path: Path) -> None:
    engine = wire()
    manage = Interpreter(engine, lambda: 0.0)
    script = f"{tmp_path}/rc"
    with open(script, "w") as file:
        file.write(f"# a comment\n\ndelay 5\nnonsense\nload {script}\nfifo 0\n")
    found = manage.script(script, Session())
    assert [answer.error for line, answer in found if line in ("delay 5", "fifo 0")] == [0, 0]
    assert next(answer for line, answer in found if line == "nonsense").error
    assert engine.chain.node.get(Parameter.DELAY, RL) == WireValue(5)
    assert not engine.fifo
    assert manage.execute("load /nonexistent", Session()).error
    echo = manage.execute(f"load {script}", Session()).lines
    assert f"VDEwf$ ({script}) delay 5" in echo
    assert f"VDEwf$ ({script}) line 4" in echo
    assert not any("nonsense" in line or "comment" in line for line in echo)
    assert manage.execute("shutdown", Session()).after is After.SHUTDOWN


@pytest.mark.parametrize(
    ("text", "directions", "node", "value"),
    [
        ("10", (LR, RL), 0, WireValue(10)),
        (" LR10+5N ", (LR,), 0, WireValue(10, 5, "N")),
        ("RL128+64K", (RL,), 0, WireValue(128 * 1024, 64 * 1024)),
        ("1.5mu[3]", (LR, RL), 3, WireValue(1.5 * 1024 * 1024)),
        (".5", (LR, RL), 0, WireValue(0.5)),
        ("2G", (LR, RL), 0, WireValue(2 << 30)),
    ],
)
def test_values(text: str, directions: tuple[int, ...], node: int, value: WireValue) -> None:
    found = parse_setting(text)
    assert (found.directions, found.node, found.value) == (directions, node, value)


@pytest.mark.parametrize("text", ["", "x", "LR", "10+", "-5", "10%", "10[x]", "lr5", "nan", "1e999x"])
def test_bad_values(text: str) -> None:
    with pytest.raises(RequestError):
        parse_setting(text)


@given(st.text(max_size=40))
def test_any_command_is_answered(line: str) -> None:
    manage = Interpreter(wire(), lambda: 0.0)
    if line.strip().startswith("load"):
        return
    answer = manage.execute(line, Session())
    assert not answer.lines or answer.lines[-1][0] == "1"
