# SPDX-License-Identifier: GPL-2.0-or-later
"""``wirefilter://[delay=10+5N/loss=LR1/…]{VNL}``: a wire with faults in front of any other end.

The plug is the left end of the wire, the inner VNL the right one; so ``LR`` is what is sent, ``RL`` what is received.
Values and management are those of ``vdexdp wirefilter``.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdexdp.errors import RequestError, VnlError
from vdexdp.plugins import registry
from vdexdp.plugins.base import NoKernelEnd, OpenContext, Option, Parsed, Plugin
from vdexdp.vnl import mode
from vdexdp.wirefilter.filter import MODE_DEFAULT, FilterSpec, FilterStream
from vdexdp.wirefilter.values import Parameter, parse_setting


@dataclass(frozen=True)
class WirefilterSpec:
    filter: FilterSpec
    inner: registry.End


class WirefilterPlugin(Plugin):
    scheme = "wirefilter"
    grammar = "nested"
    summary = "delay, loss and other faults of a wire in front of another end"
    example = "wirefilter://[delay=10+5N/loss=LR1]{vde:///tmp/sw}"
    options = (
        Option("rc", "file of management commands to begin with"),
        Option("delay", "milliseconds", default="0"),
        Option("dup", "percent of frames to duplicate", default="0"),
        Option("loss", "percent of frames to lose", default="0"),
        Option("lostburst", "mean length of bursts of lost frames (Gilbert's model)", default="0 (single)"),
        Option("mtu", "bytes, Ethernet header included; longer frames are lost", default="0 (any)"),
        Option("nofifo", "frames with less delay may overtake others", flag=True),
        Option("bufsize", "bytes that may wait; what exceeds it is lost", default="0 (64M)"),
        Option("bandwidth", "bytes per second of a bottleneck", default="0 (any)"),
        Option("speed", "bytes per second of the interface, whose sender waits", default="0 (any)"),
        Option("noise", "damaged bits per megabyte", default="0"),
        Option("blink", "UNIX datagram socket to which each frame is announced"),
        Option("blinkid", "how these announcements begin", default="the process id"),
        Option("mgmt", "management socket"),
        Option("mgmtmode", "its permissions, octal", default="0700"),
        Option("pidfile", "file for the process id"),
    )

    def parse(self, parsed: Parsed) -> WirefilterSpec:
        if not parsed.nested:
            raise VnlError(parsed.vnl, "no VNL in braces", f"write for instance {self.example}")
        if parsed.address:
            raise VnlError(parsed.vnl, f'"{parsed.address}" stands in front of the options', "leave it out")
        options = parsed.options
        values = tuple((parameter, options[key]) for key, parameter in VALUES.items() if key in options)
        for parameter, text in values:
            try:
                node = parse_setting(text).node
            except RequestError as error:
                raise VnlError(
                    parsed.vnl, f'{parameter.name.lower()}: "{text}" is {error.cause}', error.hint
                ) from error
            if node:
                raise VnlError(parsed.vnl, "at the start there is only Markov node 0", "set other nodes in an rc file")
        spec = FilterSpec(
            values,
            nofifo="nofifo" in options,
            mgmtmode=mode(parsed, "mgmtmode", MODE_DEFAULT),
            **{key: options[key] for key in ("rc", "mgmt", "blink", "blinkid", "pidfile") if key in options},
        )
        return WirefilterSpec(spec, registry.parse(parsed.nested))

    def open(self, spec: WirefilterSpec, context: OpenContext) -> FilterStream:
        inner = spec.inner.open(context)
        try:
            return FilterStream(inner, spec.filter)
        except BaseException:
            inner.close()
            raise

    def kernel_end(self, spec: WirefilterSpec) -> NoKernelEnd:
        return NoKernelEnd("wirefilter:// delays and loses frames in userspace")


VALUES = {
    "loss": Parameter.LOSS,
    "lostburst": Parameter.LOSTBURST,
    "delay": Parameter.DELAY,
    "dup": Parameter.DUP,
    "bandwidth": Parameter.BANDWIDTH,
    "speed": Parameter.SPEED,
    "noise": Parameter.NOISE,
    "mtu": Parameter.MTU,
    "bufsize": Parameter.BUFSIZE,
}
"""Options of the scheme that are values of the wire."""
