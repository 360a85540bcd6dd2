"""What counts as sent: access units that left the farm to their last byte, and nothing else."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import pytest
from tests.support.rtp_client import AccessUnit, RtspClient

from nvrstore.errors import ClosedError, UsageError
from nvrstore.farm import Act, Farm, FarmConfig, check_access_units

pytestmark = pytest.mark.slow


def test_what_was_sent_is_what_arrives_when_the_farm_stops_first(small: FarmConfig) -> None:
    """The farm stops at a frame's end and keeps connections open: the client finds exactly the frames that were sent, to the last byte."""
    with Farm(replace(small, streams=2)) as farm, RtspClient(farm.url(0)) as one, RtspClient(farm.url(1), udp=True) as other:
        one.play()
        other.play()
        other_units = other.units(25)
        units = one.units(25)
        sent, other_sent = farm.stop_sending()
        farm.close()
        units += one.to_the_end()
    assert check_access_units(unit.data for unit in units).ranges == sent.ranges
    assert sent.dropped == 0
    assert sent.count == len(units)
    assert other_sent.count >= len(other_units)
    assert not one._buffer, "no piece of a frame behind the last one"


@pytest.mark.parametrize("audio", [None, "aac"])
def test_a_client_that_does_not_read_loses_whole_frames_and_delays_nobody(small: FarmConfig, audio: str | None) -> None:
    """Its backlog is bounded; what did not fit counts as dropped; what was sent is whole; the other client misses nothing."""
    config = replace(small, streams=2, send_buffer_bytes=4096, backlog_bytes_max=40_000, audio=audio)  # type: ignore[arg-type]
    with Farm(config) as farm, RtspClient(farm.url(0), receive_buffer_bytes=4096) as slow, RtspClient(farm.url(1)) as quick:
        slow.play(audio=audio is not None)
        quick.play()
        quick_units = quick.units(150)
        slow_units = slow.units(30)  # reads again: the rest of its backlog is sent, too
        heard: list[AccessUnit] = []
        reader = threading.Thread(target=lambda: heard.extend(slow.to_the_end()))
        reader.start()
        slow_sent, quick_sent = farm.stop_sending()
        farm.close()
        reader.join(20)
    assert check_access_units(unit.data for unit in quick_units).whole
    assert quick_sent.dropped == 0
    assert slow_sent.dropped > 20
    report = check_access_units(unit.data for unit in [*slow_units, *heard])
    assert report.ranges == slow_sent.ranges
    assert not report.damaged
    assert report.unstamped == report.disordered == 0


@pytest.mark.slow
def test_frames_that_a_dead_client_did_not_take_are_not_sent(small: FarmConfig) -> None:
    """The connection breaks with a backlog: what was not written never counts."""
    config = replace(small, send_buffer_bytes=4096, backlog_bytes_max=10_000_000, streams=2)
    with Farm(config) as farm:
        with RtspClient(farm.url(0), receive_buffer_bytes=4096) as slow, RtspClient(farm.url(1)) as quick:
            slow.play()
            quick.play()
            quick.units(100)
        made, sent = farm.sent(0).made, farm.sent(0).count
    assert made > 60
    assert sent < made / 2


@pytest.mark.parametrize("udp", [False, True])
def test_numbers_go_on_after_a_reconnect_and_are_never_used_twice(small: FarmConfig, udp: bool) -> None:
    """Two sessions, one after the other: no number twice, no hole but for frames that died with the first connection."""
    with Farm(small) as farm:
        units = []
        for _ in range(3):
            with RtspClient(farm.url(0), udp=udp) as client:
                client.play()
                units += client.units(15)
        farm.stop_sending()
        sent = farm.sent(0)
    report = check_access_units(unit.data for unit in units)
    assert report.frames == 45
    assert report.duplicated == report.damaged == ()
    assert report.disordered == 0
    assert report.ranges[-1].last <= sent.made - 1
    assert not report.lost(replace(sent, ranges=report.ranges))


def test_nothing_is_made_while_nobody_listens(small: FarmConfig) -> None:
    """Frames are numbered from the first listener on; a paused session takes none."""
    with Farm(replace(small, streams=2)) as farm, RtspClient(farm.url(0)) as client, RtspClient(farm.url(1)) as clock:
        client.play()
        clock.play()
        client.units(5)
        assert farm.listeners(0) == 1
        assert client.ask("PAUSE").status == 200
        assert farm.listeners(0) == 0
        made = farm.sent(0).made
        clock.units(30)
        assert farm.sent(0).made == made
        assert client.ask("PLAY").status == 200
        client._video.clear()
        units = client.units(5)
    report = check_access_units(unit.data for unit in units)
    assert report.ranges[0].first >= made
    assert report.whole


def test_an_orderly_disconnect_delivers_everything_that_was_sent(small: FarmConfig) -> None:
    """The camera closes: the client reads to the end and finds what was sent."""
    with Farm(small) as farm, RtspClient(farm.url(0)) as client:
        client.play()
        units = client.units(10)
        farm.act(Act("disconnect"))
        units += client.to_the_end()
        sent = farm.sent(0)
    assert check_access_units(unit.data for unit in units).ranges == sent.ranges


def test_an_orderly_disconnect_writes_the_backlog_first(small: FarmConfig) -> None:
    """A slow client that is disconnected still gets everything that was made for it."""
    config = replace(small, send_buffer_bytes=4096, streams=2)
    with Farm(config) as farm, RtspClient(farm.url(0), receive_buffer_bytes=4096) as slow, RtspClient(farm.url(1)) as quick:
        slow.play()
        quick.play()
        quick.units(100)
        farm.act(Act("disconnect", (0,)))
        units = slow.to_the_end()
        sent = farm.sent(0)
    assert check_access_units(unit.data for unit in units).ranges == sent.ranges
    assert sent.made > 60
    assert sent.dropped == 0


def test_streams_start_at_different_instants() -> None:
    """Many cameras do not send at the same moment, and key units are spread over the GOP: no herd of large frames."""
    config = FarmConfig(streams=40, width=64, height=64, bitrate_bps=64_000, fps=25, gop=25)
    with Farm(config) as farm:
        clients = [RtspClient(farm.url(stream)) for stream in range(config.streams)]
        try:
            for client in clients:
                client.play()
            starts = Counter(client.unit().timestamp for client in clients)  # each feed has a timestamp of its own
        finally:
            for client in clients:
                client.sock.close()
    assert len(starts) >= 5
    assert max(starts.values()) <= 12


def test_a_farm_says_what_it_cannot_be() -> None:
    """All mistakes at once, before anything is started."""
    with pytest.raises(UsageError, match=r"streams: .*; port: .*; loss: .*; size: "):
        Farm(FarmConfig(streams=0, port=70_000, loss=2, width=641))
    farm = Farm(FarmConfig())
    with pytest.raises(ClosedError):
        _ = farm.port


def test_a_taken_port_is_said_with_a_hint(small: FarmConfig) -> None:
    """Two farms at one port: a sentence, no traceback of sockets, and nothing left open."""
    with Farm(small) as farm, pytest.raises(UsageError, match="cannot listen at"), Farm(replace(small, port=farm.port)):
        pass


def test_the_thread_ends_with_the_farm(small: FarmConfig) -> None:
    """Nothing is left behind, and what was sent can still be asked for."""
    with Farm(small) as farm, RtspClient(farm.url(0)) as client:
        client.play()
        client.units(3)
    assert not [thread for thread in threading.enumerate() if thread.name == "nvrstore-farm"]
    assert farm.sent(0).count >= 3
    farm.close()
