"""The studio: all cameras, the feeds they are on, and which unit is due next. No sockets.

play(session) --> a feed of the wheel, or one of the camera's own --> heap of (due, feed) --> send_due(now)
act(camera, act) --> the camera gets a feed of its own, and that one misbehaves
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nvrstore.clock import Clock
from nvrstore.errors import UsageError
from nvrstore.farm.burn import BurnFeed
from nvrstore.farm.camera import Camera, Look
from nvrstore.farm.feed import SPOKES, AudioTrack, Feed, Packets, Wheel
from nvrstore.farm.oddities import Act, OddFeed, Traits, flapping, keyless
from nvrstore.farm.reels import AudioReel, VideoReel, VideoSpec
from nvrstore.farm.session import Session


@dataclass(frozen=True, slots=True)
class StudioConfig:
    """What cameras there are. `reels` holds every reel that an act may ask for: nothing is encoded while the farm runs."""

    looks: Sequence[Look]
    reels: Mapping[VideoSpec, VideoReel]
    seed: int
    burn: bool


class Studio:
    """Runs in the farm's thread."""

    def __init__(self, config: StudioConfig, clock: Clock) -> None:
        self.clock = clock
        self.cameras: Mapping[str, Camera] = {camera.name: camera for camera in map(Camera, range(len(config.looks)), config.looks)}
        self.lateness_s_max = 0.0
        self._reels, self._burn = dict(config.reels), config.burn
        self._random = random.Random(config.seed)
        self._packets: dict[object, Packets] = {}
        self._wheels: dict[object, Wheel] = {}
        self._heap: list[tuple[float, int, Feed | Callable[[], None]]] = []
        self._pushed = 0

    def know(self, reel: VideoReel) -> None:
        """A reel that acts may ask for from now on. May be called from any thread."""
        self._reels[reel.spec] = reel

    # --- feeds -----------------------------------------------------------------------------------------------------

    def _cut(self, reel: VideoReel, traits: Traits) -> Packets:
        """The packets of a reel as this camera sends it, cut once for all cameras alike."""
        key = (reel.spec, traits.sps_flap, traits.no_key, traits.delimiters, traits.aggregate)
        packets = self._packets.get(key)
        if packets is None:
            if traits.sps_flap:
                reel = flapping(reel)
            if traits.no_key:
                reel = keyless(reel)
            packets = self._packets[key] = Packets(reel, delimiters=traits.delimiters, aggregate=traits.aggregate)
        return packets

    def _audio_track(self, reel: AudioReel | None) -> AudioTrack | None:
        bits = self._random.getrandbits
        return None if reel is None else AudioTrack(reel, seq=bits(16), timestamp_0=bits(32), ssrc=bits(32))

    def _wheel(self, look: Look) -> Wheel:
        key = (look.video.spec, None if look.audio is None else look.audio.spec)
        wheel = self._wheels.get(key)
        if wheel is None:
            bits = self._random.getrandbits
            gop_s = look.video.gop_s
            start_s = self.clock.monotonic_s() - gop_s
            wheel = self._wheels[key] = Wheel(
                [
                    Feed(
                        self._cut(look.video, look.traits),
                        start_s=start_s + at * gop_s / SPOKES,
                        seq=bits(16),
                        timestamp_0=bits(32),
                        ssrc=bits(32),
                        audio=self._audio_track(look.audio),
                    )
                    for at in range(SPOKES)
                ]
            )
        return wheel

    def _new_own_feed(self, camera: Camera, now_s: float) -> OddFeed:
        bits = self._random.getrandbits
        look = camera.look
        kind = BurnFeed if self._burn else OddFeed
        feed = kind(
            self._cut(look.video, look.traits),
            look.traits,
            start_s=now_s,
            seq=bits(16),
            timestamp_0=bits(32),
            ssrc=bits(32),
            audio=self._audio_track(look.audio),
        )
        feed.begin(now_s)
        if isinstance(feed, BurnFeed):
            feed.start_encoder(self.clock.utc_ns() - round((self.clock.monotonic_s() - feed.start_s) * 1e9))
        feed.muted = camera.muted
        return feed

    def _own_feed(self, camera: Camera) -> OddFeed | None:
        """The camera's own feed, taken out of a shared one if need be. None while nobody listens; the next one will be its own."""
        camera.own_feed = True
        feed = camera.feed
        if feed is None or isinstance(feed, OddFeed):
            return feed
        feed.cameras = tuple(other for other in feed.cameras if other is not camera)
        own = OddFeed.fork(feed, camera.look.traits)
        self._attach(camera, own)
        return own

    def _attach(self, camera: Camera, feed: Feed) -> None:
        camera.feed = feed
        feed.cameras = (*feed.cameras, camera)
        if not feed.scheduled:
            feed.scheduled = True
            self._push(feed)

    # --- sessions --------------------------------------------------------------------------------------------------

    def play(self, session: Session) -> Feed:
        """Begin to send to a session."""
        camera = session.camera
        feed = camera.feed
        now_s = self.clock.monotonic_s()
        if feed is not None and not camera.sessions and not isinstance(feed, OddFeed):
            self._detach(camera, feed)  # left since its last unit, which is when it would have noticed: not bound to its key units
            feed = None
        if feed is None:
            if camera.own_feed or self._burn:
                feed = self._new_own_feed(camera, now_s)
                session.waiting = not camera.look.traits.starts_anywhere
            else:
                feed = self._wheel(camera.look).choose(now_s)
                if not feed.scheduled:
                    feed.wake(now_s)
            self._attach(camera, feed)
        elif camera.look.traits.starts_anywhere:
            session.waiting = False
        session.join(feed)
        feed.report_due_s = now_s
        camera.listen(session)
        return feed

    def pause(self, session: Session) -> None:
        """Stop to send to a session."""
        session.playing = False
        session.waiting = True
        session.camera.leave(session)

    # --- time ------------------------------------------------------------------------------------------------------

    def _push(self, feed: Feed) -> None:
        self.at(feed.due_s + (self._random.uniform(0, feed.jitter_s) if feed.jitter_s else 0.0), feed)

    def at(self, due_s: float, what: Feed | Callable[[], None]) -> None:
        """Send the next unit of a feed, or call something, at a monotonic time."""
        self._pushed += 1  # breaks ties: feeds do not compare
        heapq.heappush(self._heap, (due_s, self._pushed, what))

    @property
    def next_due_s(self) -> float | None:
        """When `send_due` is to be called next."""
        return self._heap[0][0] if self._heap else None

    def send_due(self, now_s: float) -> None:
        """Send every unit that is due, and do every act."""
        heap, clock = self._heap, self.clock
        while heap and heap[0][0] <= now_s:
            due_s, _, feed = heapq.heappop(heap)
            if not isinstance(feed, Feed):
                feed()
                continue
            for camera in feed.cameras:
                if not camera.sessions:
                    self._detach(camera, feed)
            if not feed.cameras:
                feed.scheduled = False
                continue
            if feed.due_s > now_s:  # it was moved since
                self._push(feed)
                continue
            if feed.muted and isinstance(feed, OddFeed):
                feed.pass_over()
            else:
                self.lateness_s_max = max(self.lateness_s_max, now_s - due_s)
                on_air = feed.next_unit()
                for camera in feed.cameras:
                    camera.emit(on_air, clock)
                if feed.report_due_s <= now_s:
                    self._report(feed, now_s)
            self._push(feed)

    def _detach(self, camera: Camera, feed: Feed) -> None:
        camera.feed = None
        feed.cameras = tuple(other for other in feed.cameras if other is not camera)

    def _report(self, feed: Feed, now_s: float) -> None:
        utc_ns = self.clock.utc_ns()
        dues_s = [session.report(feed, now_s, utc_ns) for camera in feed.cameras for session in camera.sessions]
        feed.report_due_s = min(dues_s, default=now_s)

    def skip(self, stalled_s: float) -> None:
        """The farm did not run for a while: live pictures of that time do not exist. Whole frames, so that timestamps stay true."""
        heap, self._heap = self._heap, []
        for due_s, _, feed in heap:
            if isinstance(feed, Feed):
                feed.move_to(feed.number + int(stalled_s * feed.fps))
                self._push(feed)
            else:
                self.at(due_s, feed)

    # --- acts ------------------------------------------------------------------------------------------------------

    def act(self, camera: Camera, act: Act) -> None:
        """Do what concerns the stream; connections are the server's."""
        now_s = self.clock.monotonic_s()
        match act.do:
            case "mute" | "unmute":
                camera.muted = act.do == "mute"
                feed = self._own_feed(camera)
                if feed is not None:
                    feed.muted = camera.muted
            case "restart":
                feed = self._own_feed(camera)
                if feed is not None:
                    feed.restart(now_s, self._random.getrandbits(32))
            case "jump":
                feed = self._own_feed(camera)
                if feed is not None:
                    feed.jump(act.seconds)
            case "lose":
                feed = self._own_feed(camera)
                if feed is not None:
                    feed.lose(act.frames)
            case "change":
                spec = act.changed(camera.look.video.spec)
                if spec not in self._reels:
                    raise UsageError("a farm that runs encodes nothing: name the change in a script, or before the start")
                camera.look = replace(camera.look, video=self._reels[spec])
                feed = self._own_feed(camera)
                if feed is not None:
                    feed.change(self._cut(camera.look.video, camera.look.traits), now_s)
            case _:
                raise UsageError(f"{act.do!r} is no deed of a stream")
