"""The hot loop: RTP packets of H.264 or H.265 video, as they lie in the receive buffer, to access units.

    buffer   [$ch len|RTP|FU hdr|S ......][$ch len|RTP|FU hdr|......] ... [$ch len|RTP|FU hdr|E ..]   one slice, fragmented
                 one by one                 \\__ a run: like the one before but for sequence number, timestamp, bytes __/
                                                one regular expression finds it, one `itemgetter` looks at its payloads
    parts    [u32 length + NAL header][payload][payload] ... [u32 length][NAL] ...  ─join─▶ the access unit, as in `Sample.data`

Cost, measured on a 2-core virtual machine (Python 3.11, 20 KB per access unit in 15 packets, three at a time): 10 µs per access
unit in here, the copy included, and as much again until it lies in its fragment. Payload is copied once, out of the receive buffer
into the access unit: parts are views. What a read leaves unfinished is copied at its end, and once more when the rest has come.

An access unit ends with the marker bit, or where the timestamp changes (RFC 6184 5.1). Of what a sequence gap tore open,
every byte that came is kept, up to the gap, and the access unit is flagged as damaged; so is the next one, unless it plainly
begins behind the gap. Invariant: nothing in here keeps a reference to the receive buffer, or raises over its contents.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Final, Protocol

from nvrstore.ingest.lean.rtp import FRAME_BYTES, Sequence, payload_of
from nvrstore.limits import SAMPLE_BYTES_MAX
from nvrstore.media.nal import has_recovery_point

ENDLESS: Final = 8  # so many access units in a row without an end bit: this camera never sets it
RESTART_TICKS: Final = 45_000  # half a second back: further than pictures are reordered
PARTS_MAX: Final = 65_536  # of one access unit: tiny packets cost more than their bytes
RUN_MAX: Final = 64  # packets taken out at once
RECOVERY: Final = 1 << 63  # beside the NAL unit types in `kinds`: an SEI says that decoding can begin here
ODD: Final = 1 << 62  # something stands in there that has to be looked at closely

_HEADER: Final = struct.Struct(">HHHHII")  # '$' channel, length, RTP flags and type, sequence number, timestamp, SSRC
_LENGTH: Final = struct.Struct(">I")
_HIGH: Final = bytes(number >> 8 & 0xFF for number in range(0x10000 + RUN_MAX))  # sequence numbers that follow each other, by their bytes
_LOW: Final = bytes(number & 0xFF for number in range(0x10000 + RUN_MAX))
_PATTERNS_MAX: Final = 64  # sizes of packets that are worth an expression, which takes half a millisecond to make


class Sink(Protocol):
    """Who takes access units."""

    def unit(self, data: bytes, kinds: int, timestamp: int, damaged: bool, arrival_ns: int, arrival_s: float) -> None:
        """One access unit: NAL units behind lengths; `kinds` has a bit for every NAL unit type in it, RECOVERY and ODD."""

    def deliver(self) -> None:
        """What one read of the socket brought is complete."""

    def flush(self) -> None:
        """There are no more."""


@lru_cache(maxsize=1024)
def _payloads(stride: int, skip: int, count: int) -> Callable[[memoryview], tuple[memoryview, ...]]:
    """Takes the payloads of `count` packets, two at least, that lie `stride` bytes apart."""
    return itemgetter(*(slice(at + skip, at + stride) for at in range(0, count * stride, stride)))


class UnitReader:
    """One video track. Codecs say what differs: constants, and what to do with packets that hold several NAL units."""

    shift: int  # NAL unit type = first byte >> shift & mask
    mask: int
    fragment: int  # type of fragmentation units
    whole: int  # types below this one are NAL units as they are; this one is an aggregate of several
    header: int  # bytes of a NAL unit's header; a fragment has one more
    sei: int
    beginnings: frozenset[int]  # types that stand only in front of a picture
    slices: int  # types below this one (and above 0 in H.264) are slices

    def __init__(self, channel: int, payload_type: int, sink: Sink) -> None:
        self.sequence = Sequence()
        self.arrival_ns, self.arrival_s = 0, 0.0  # of the bytes that are being read: set by the connection
        self._sink = sink
        self._head: Final = 0x2400 | channel
        self._plain: Final = 0x8000 | payload_type
        self._marked: Final = 0x8080 | payload_type
        self._payload_type: Final = payload_type
        self._patterns: dict[tuple[int, int, int, int], re.Pattern[bytes]] = {}
        # the open access unit
        self._parts: list[bytes | bytearray | memoryview] = []
        self._kept = 0  # so many of them do not lie in the receive buffer
        self._timestamp = -1
        self._bytes = self._kinds = 0
        self._since: tuple[int, float] = (0, 0.0)  # arrival of its first packet
        self._damaged = False
        self._open = -1  # where in `_parts` the header of an unfinished fragmented NAL unit stands
        self._open_from = 0  # and how many bytes there were before it
        self._ended = -1  # timestamp of the last access unit, if a marker bit ended it
        self._joined = -1  # timestamp of a picture in the middle of which the session began
        self._marks = False  # whether markers were seen at all
        self._marker_lies = False
        self._endless = 0  # access units in a row in which a fragmented NAL unit had no end
        self._waiting = bytearray()  # a packet that may be the first of another source

    def take(self, buffer: bytearray, at: int, end: int) -> int:
        """Read this track's packets from `at` on, as long as they are whole and follow each other; where the next frame begins."""
        unpack, head, plain, marked = _HEADER.unpack_from, self._head, self._plain, self._marked
        shift, mask, fragment, skip = self.shift, self.mask, self.fragment, self.header + 1
        sequence, parts = self.sequence, self._parts
        view = memoryview(buffer)
        while end - at >= FRAME_BYTES:
            framing, length, flags, number, timestamp, ssrc = unpack(buffer, at)
            following = at + 4 + length
            if framing != head or following > end:
                break
            if flags == plain and length > 12:
                start, stop, marker = at + 16, following, False
            elif flags == marked and length > 12:
                start, stop, marker = at + 16, following, not self._marker_lies
            else:
                found = payload_of(buffer, at + 4, following, self._payload_type)
                if found is None:
                    at = following
                    continue
                start, stop, marker = found[0], found[1], found[2] and not self._marker_lies
            if number != sequence.expected or ssrc != sequence.ssrc:
                if not sequence.accept(number, ssrc):
                    if sequence.waiting:
                        self._waiting = buffer[at:following]
                    at = following
                    continue
                if sequence.torn:
                    self._tear(timestamp, buffer, start, stop)
                elif sequence.switched:
                    self._switch(number)
            sequence.expected = number + 1 & 0xFFFF
            if timestamp != self._timestamp:
                if parts:
                    self._end(False)
                self._timestamp = timestamp
            if not parts:
                if self._joined >= 0:
                    if timestamp == self._joined and self._slice_at(buffer, start, stop) != 0:
                        at = following  # the rest of a picture that had begun before the session
                        continue
                    self._joined = -1  # that picture is over, even where the clock stands still
                self._since = (self.arrival_ns, self.arrival_s)
                if timestamp == self._ended and not self._damaged:
                    self._again(buffer, start, stop)
                    marker = marker and not self._marker_lies

            kind = buffer[start] >> shift & mask
            if kind == fragment:  # RFC 6184 5.8, RFC 7798 4.4.3
                body = start + skip
                bits = buffer[body - 1] if body <= stop else 0
                if bits & 0x80:
                    self._open_fragmented(buffer, start, bits)
                elif self._open < 0:
                    self._damaged, body = True, stop  # its beginning is not there
                if not bits & 0x40 and body < stop == following and end - following >= following - at and start == at + 16 and not marker:
                    following = self._run(buffer, view, at, following, body - at, bits & 0x3F, end)
                elif body < stop:
                    parts.append(view[body:stop])
                    self._bytes += stop - body
                    if bits & 0x40:
                        self._endless = 0
                        self._close()
            elif kind < self.whole:
                if self._open >= 0:
                    self._close()  # some cameras set no end bits
                parts.append(_LENGTH.pack(stop - start))
                parts.append(view[start:stop])
                self._bytes += stop - start
                self._kinds |= 1 << kind
                if kind == self.sei and recovers(bytes(parts[-1]), self.header):
                    self._kinds |= RECOVERY
            else:
                self._aggregate(buffer, start, stop, kind)
            at = following
            if marker:
                self._end(True)
            elif self._bytes > SAMPLE_BYTES_MAX or len(parts) > PARTS_MAX:
                self._overflow()
        if len(parts) > self._kept:
            self._keep()
        return at

    def _run(self, buffer: bytearray, view: memoryview, at: int, following: int, skip: int, bits: int, end: int) -> int:
        """Take out the fragment at `at`, and all that follow it and are like it, at once; where the next frame begins."""
        stride = following - at
        key = (stride, buffer[at + 16], buffer[at + 17] if skip == 19 else 0, bits)
        pattern = self._patterns.get(key) or self._pattern(buffer, at, following, key)
        found = None if pattern is None else pattern.match(buffer, following, end)
        after = following if found is None else found.end()
        count, number = (after - following) // stride, self.sequence.expected
        low, high = buffer[following + 7 : after : stride], buffer[following + 6 : after : stride]
        if low != _LOW[number : number + count] or high != _HIGH[number : number + count]:
            count, after = 0, following
        self.sequence.expected = number + count & 0xFFFF
        if count:
            self._parts += _payloads(stride, skip, count + 1)(view[at:after])
        else:
            self._parts.append(view[at + skip : after])
        self._bytes += (count + 1) * (stride - skip)
        return after

    def _pattern(self, buffer: bytearray, at: int, following: int, key: tuple[int, int, int, int]) -> re.Pattern[bytes] | None:
        """Up to RUN_MAX whole frames: framing, an RTP header without marker, any numbers, this payload header, any bytes.

        None where nothing suggests that there are any, or where too many kinds of them were seen.
        """
        if len(self._patterns) >= _PATTERNS_MAX or buffer[following : following + 4] != buffer[at : at + 4]:
            return None
        stride, first, second, bits = key
        header = bytes((first, second, bits) if self.header == 2 else (first, bits))
        fixed = re.escape(bytes(buffer[at : at + 5]) + bytes((self._payload_type,)))
        rest = stride - 16 - len(header)
        pattern = re.compile(b"(?s)(?:%b.{10}%b.{%d}){1,%d}" % (fixed, re.escape(header), rest, RUN_MAX))
        self._patterns[key] = pattern
        return pattern

    def _keep(self) -> None:
        """An access unit goes on in the next read: what is here of it is copied out of the buffer, which is another camera's by then."""
        parts, kept = self._parts, self._kept
        loose = self._open + 1  # whatever stands in front of it keeps its place: the header of an unfinished NAL unit does
        if loose > kept:
            parts[kept:loose] = map(bytes, parts[kept:loose])
            kept = loose
        if len(parts) > kept:
            parts[kept:] = (b"".join(parts[kept:]),)
        self._kept = len(parts)

    def deliver(self) -> None:
        """The read is over."""
        self._sink.deliver()

    def flush(self) -> None:
        """The session is over, in the middle of whatever is open."""
        if self._parts:
            self._damaged = self._damaged or self._open >= 0 or (self._marks and not self._marker_lies)
            self._end(False)
        self._sink.flush()

    # --- the less usual

    def _end(self, marked: bool) -> None:
        """The open access unit is complete, or as complete as it gets."""
        parts = self._parts
        self._ended = self._timestamp if marked else -1
        self._marks = self._marks or marked
        if not parts:
            return
        if self._open >= 0:
            self._close()
            self._endless += 1
            self._damaged = self._damaged or self._endless < ENDLESS
        data = b"".join(parts)
        parts.clear()
        self._kept = 0
        kinds, damaged, (arrival_ns, arrival_s) = self._kinds, self._damaged, self._since
        self._bytes = self._kinds = 0
        self._damaged = False
        self._sink.unit(data, kinds, self._timestamp, damaged, arrival_ns, arrival_s)

    def _open_fragmented(self, buffer: bytearray, start: int, bits: int) -> None:
        """A fragmented NAL unit begins."""
        if self._open >= 0:
            self._close()
        header, kind = self._rebuilt(buffer[start], buffer[start + 1], bits)
        self._open, self._open_from = len(self._parts), self._bytes
        self._parts.append(header)
        self._bytes += len(header)
        self._kinds |= 1 << kind
        if kind == self.sei:
            self._kinds |= ODD

    def _close(self) -> None:
        """The fragmented NAL unit is complete, or torn: its length is known now."""
        at = self._open
        self._parts[at] = _LENGTH.pack(self._bytes - self._open_from) + self._parts[at]
        self._open = -1

    def _tear(self, timestamp: int, buffer: bytearray, start: int, stop: int) -> None:
        """Packets are missing in front of this one, or it is the first of all."""
        if self._open >= 0:
            self._close()
        if self._timestamp < 0:
            if not self._begins(buffer, start, stop):
                self._joined = timestamp
            return
        if timestamp == self._joined:
            return  # nothing of that picture is owed
        if not self._parts:  # what is missing may be the beginning of this access unit, unless everything begins anew with it
            back = self._timestamp - timestamp & 0xFFFF_FFFF
            self._damaged = not RESTART_TICKS < back < 1 << 31 or not self._begins(buffer, start, stop)
            return
        self._damaged = True
        if timestamp != self._timestamp:
            self._end(False)
            self._damaged = not self._begins(buffer, start, stop)

    def _switch(self, number: int) -> None:
        """Another source goes on: what the old one left open is torn; the new one begins with the packet before this one."""
        if self._parts:
            self._damaged = True
            self._end(False)
        self._timestamp = self._ended = -1
        waiting, self._waiting = self._waiting, bytearray()
        self.sequence.expected = number - 1 & 0xFFFF
        self.take(waiting, 0, len(waiting))

    def _begins(self, buffer: bytearray, start: int, stop: int) -> bool:
        """Whether an access unit plainly begins with this payload."""
        if buffer[start] >> self.shift & self.mask == self.whole and stop - start > self.header + 2:
            start += self.header + 2  # an aggregate: its first NAL unit tells
        return buffer[start] >> self.shift & self.mask in self.beginnings or self._slice_at(buffer, start, stop) == 0

    def _slice_at(self, buffer: bytearray, start: int, stop: int) -> int | None:
        """0: the first slice of a picture; 1: a later one; None: no beginning of a slice (H.264 7.3.3, H.265 7.3.6.1: the first bit)."""
        kind = buffer[start] >> self.shift & self.mask
        at = start + self.header
        if kind == self.fragment:
            if at >= stop or not buffer[at] & 0x80:
                return None
            kind = self._rebuilt(buffer[start], buffer[start + 1], buffer[at])[1]
            at += 1
        return None if kind >= self.slices or at >= stop else int(not buffer[at] & 0x80)

    def _again(self, buffer: bytearray, start: int, stop: int) -> None:
        """After a marker the same timestamp: another picture, or the same one, because this camera marks every slice or packet."""
        at = start + self.header
        continues = buffer[start] >> self.shift & self.mask == self.fragment and at < stop and not buffer[at] & 0x80
        if continues or self._slice_at(buffer, start, stop) == 1:
            self._marker_lies = self._damaged = True

    def _overflow(self) -> None:
        """No picture is that large: drop it, and say so with the next one."""
        self._parts.clear()
        self._kept = 0
        self._open = -1
        self._bytes = self._kinds = 0
        self._damaged = True

    def _rebuilt(self, first: int, second: int, flags: int) -> tuple[bytes, int]:
        """Header and type of the NAL unit that begins with a fragment."""
        raise NotImplementedError

    def _aggregate(self, buffer: bytearray, start: int, stop: int, kind: int) -> None:
        """A packet that holds several NAL units, or something that cameras should not send."""
        raise NotImplementedError

    def _several(self, buffer: bytearray, at: int, stop: int) -> None:
        """NAL units behind 16-bit lengths (RFC 6184 5.7.1, RFC 7798 4.4.2)."""
        if self._open >= 0:
            self._close()
        parts, view = self._parts, memoryview(buffer)
        while stop - at > 2:
            size = buffer[at] << 8 | buffer[at + 1]
            at += 2
            if size > stop - at:
                self._damaged = True
                size = stop - at
            if size:
                kind = buffer[at] >> self.shift & self.mask
                parts.append(_LENGTH.pack(size))
                parts.append(view[at : at + size])
                self._bytes += size
                self._kinds |= 1 << kind if kind < self.whole else ODD
                if kind == self.sei and recovers(bytes(parts[-1]), self.header):
                    self._kinds |= RECOVERY
            at += size


def recovers(sei: bytes, header: int) -> bool:
    """Whether an SEI holds a recovery point (payload type 6): decoding can begin there."""
    return sei.find(6, header) >= 0 and has_recovery_point(sei, header)
