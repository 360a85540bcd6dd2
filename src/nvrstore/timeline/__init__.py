"""Media time to UTC: where in time every sample of a stream belongs. Pure: all times are arguments.

    camera's clock    dts ──────────────▶ media time                 (any origin, any drift, wraps, jumps, resets)
    our clocks        arrival (monotonic, UTC) ─▶ least delayed ─┐
    RTCP (if trusted) camera's NTP ──────────────────────────────┴▶ offset ─▶ UTC of a sample = media time + offset

A network only ever adds delay, so the sample that was delayed least tells the offset. A run holds one anchor: inside it
track time is media time, untouched; its UTC follows the offset by at most 500 ppm. Whatever does not fit (a jump, a
reset, a step of our own clock) ends the run; it never becomes a frame that lasts for hours. A run begins with half a
second in which samples are held, until a burst of old ones, if there is one, has told the true offset.

Invariants: every sample comes out, once, in order; within a run DTS and UTC grow from sample to sample.
A camera whose clock runs at a false rate (25 declared, 21 sent) keeps its media time; only its UTC is corrected.
"""

from nvrstore.timeline.clocks import ClockWatch, Unwrapper
from nvrstore.timeline.model import ClockStep, Placement, RunReason, RunRecord
from nvrstore.timeline.place import Timeline

__all__ = ["ClockStep", "ClockWatch", "Placement", "RunReason", "RunRecord", "Timeline", "Unwrapper"]
