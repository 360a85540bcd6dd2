"""One `moov` for all cameras: what stock players read from it, and what we read back."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
from pathlib import Path

import av
import pytest
from tests.support.encoded import Encoded, demuxed, encode_audio, encode_video
from tests.support.media import Named, placed, sample

from nvrstore.errors import FormatError, SourceNotVideoError
from nvrstore.media import init
from nvrstore.media.boxes import find, walk
from nvrstore.media.fragment import Fragmenter
from nvrstore.media.init import AAC_RATES, CACHED_BYTES_MAX, audio_config, audio_specific_config, video_config
from nvrstore.media.moov import FoundTrack, ftyp, moov, tracks_of
from nvrstore.media.nal import AccessUnits, split_lengths
from nvrstore.model import Fragment, Media, TrackConfig, TrackKey


def config_of(encoded: Encoded, sample_rate: int = 48_000) -> TrackConfig:
    if encoded.codec in ("h264", "hevc", "mjpeg"):
        return video_config(encoded.codec, encoded.extradata, 320, 240)
    return audio_config(encoded.codec, sample_rate, 1, encoded.extradata)


def fragments_of(encoded: Encoded, config: TrackConfig) -> list[Fragment]:
    """The encoder's packets through the fragmenter."""
    units = AccessUnits(encoded.codec) if encoded.codec in ("h264", "hevc") else None
    cutter = Fragmenter(TrackKey("gate", config.media), config, 1)
    found: list[Fragment] = []
    for data, pts, dts, key in encoded.packets:
        if units is not None:
            unit = units.convert(data)
            assert unit is not None
            data, key = unit
        found += cutter.push(sample(dts, pts=pts, data=data, keyframe=key, media=config.media, timescale=config.timescale), 0)
    return [*found, *cutter.flush()]


def file_of(*tracks: tuple[str, Encoded, TrackConfig]) -> bytes:
    """A whole file: `ftyp`, `moov`, and the fragments of every track, a second of each in turn."""
    parts = [ftyp(), moov([Named(name, config) for name, _, config in tracks])]
    columns = [fragments_of(encoded, config) for _, encoded, config in tracks]
    clocks = [0] * len(tracks)
    for row in range(max(map(len, columns))):
        for number, column in enumerate(columns):
            if row < len(column):
                parts.append(placed(column[row], sequence=row + 1, track_id=number + 1, tfdt=clocks[number]))
                clocks[number] += column[row].duration
    return b"".join(parts)


VIDEO_CODECS = ("h264", "hevc", "mjpeg")
AUDIO_CODECS = (("aac", 48_000), ("aac", 8_000), ("opus", 48_000), ("pcm_s16le", 8_000), ("pcm_s16be", 16_000))


@pytest.mark.parametrize("codec", VIDEO_CODECS)
def test_libav_reads_every_picture_back(codec: str) -> None:
    """Bytes, times and keyframes, as they were sent."""
    encoded = encode_video(codec)
    data = file_of(("Gate, north", encoded, config_of(encoded)))
    (packets,) = demuxed(data).values()
    assert [(pts, dts, key) for pts, dts, _, key in packets] == [packet[1:] for packet in encoded.packets]
    if codec == "mjpeg":
        assert [packet[2] for packet in packets] == [packet[0] for packet in encoded.packets]
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.width, stream.codec_context.height) == (codec, 320, 240)
        assert stream.metadata["handler_name"] == "Gate, north"
        assert sum(1 for _ in container.decode(video=0)) == 50


@pytest.mark.parametrize(("codec", "rate"), AUDIO_CODECS)
def test_libav_reads_every_sound_back(codec: str, rate: int) -> None:
    """Bytes and times, as they were sent, and it decodes."""
    encoded = encode_audio(codec, sample_rate=rate)
    config = config_of(encoded, rate)
    data = file_of(("Gate", encoded, config))
    (packets,) = demuxed(data).values()
    assert b"".join(packet[2] for packet in packets) == b"".join(packet[0] for packet in encoded.packets)
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name.removeprefix("lib"), stream.codec_context.sample_rate, stream.codec_context.channels) == (
            codec,
            rate,
            1,
        )
        assert sum(frame.samples for frame in container.decode(audio=0)) >= rate * 0.9


def test_many_tracks_are_told_apart_by_name() -> None:
    """track_ID is the position from 1; `ffprobe` shows which camera is which, in any script."""
    names = ["Gate", "Söder-Tor", "正門", "x" * 300, "nul\0inside"]
    encoded = encode_video("h264")
    data = file_of(*((name, encoded, config_of(encoded)) for name in names), ("Gate", encode_audio("aac"), config_of(encode_audio("aac"))))
    with av.open(io.BytesIO(data), "r") as container:
        found = [stream.metadata["handler_name"] for stream in container.streams]
    assert found == ["Gate", "Söder-Tor", "正門", "x" * 255, "nulinside", "Gate"]
    assert [len(packets) for packets in demuxed(data).values()] == [50] * 5 + [47]


def test_what_was_written_is_read_back() -> None:
    """Configurations survive the file: identity, codec, picture, sound, clock."""
    configs = [config_of(encode_video(codec)) for codec in VIDEO_CODECS]
    configs += [config_of(encode_audio(codec, sample_rate=rate), rate) for codec, rate in AUDIO_CODECS]
    tracks = [Named(f"camera {number}", config) for number, config in enumerate(configs)]
    found = tracks_of(ftyp() + moov(tracks))
    assert [(track.track_id, track.name) for track in found] == [(number, track.name) for number, track in enumerate(tracks, 1)]
    assert all(track.config.continues(config) for track, config in zip(found, configs, strict=True))
    assert [track.sample_entry for track in found] == [b"avc1", b"hev1", b"mp4v", b"mp4a", b"mp4a", b"Opus", b"ipcm", b"ipcm"]
    assert moov(found) == moov(tracks)


def test_the_same_input_gives_the_same_bytes() -> None:
    """Every copy of a volume is equal, whoever made its header and when."""
    encoded = encode_video("h264")
    first = video_config("h264", encoded.extradata, 320, 240)
    from nvrstore.media import init

    init._video.cache_clear()
    second = video_config("h264", encoded.extradata, 320, 240)
    assert first is not second
    assert first == second
    assert moov([Named("a", first)]) == moov([Named("a", second)])


def test_every_box_of_a_moov_fits_into_its_parent() -> None:
    """Sizes are right all the way down after a name was changed, and `trex` stands for every track."""
    data = moov([Named("a much longer name than VideoHandler", config_of(encode_video("h264")))] * 3)
    outer = find(data, "moov")
    assert [child.type for child in walk(data, outer.body, outer.end)] == [b"mvhd", b"trak", b"trak", b"trak", b"mvex"]
    assert outer.end == len(data)
    mvex = find(data, "moov/mvex")
    assert [struct.unpack_from(">II", data, child.body + 4) for child in walk(data, mvex.body, mvex.end)] == [(1, 1), (2, 1), (3, 1)]


def test_a_moov_that_is_cut_off_is_a_format_error() -> None:
    """Damage is named, never an IndexError."""
    data = moov([Named("a", config_of(encode_audio("aac")))])
    for end in range(0, len(data), 7):
        with pytest.raises(FormatError):
            tracks_of(data[:end])


def test_damage_inside_a_moov_never_raises_anything_else() -> None:
    """Each byte flipped in turn: tracks, or a FormatError."""
    data = moov([Named("a", config_of(encode_audio("aac"))), Named("b", config_of(encode_video("h264")))])
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 0xFF
        try:
            assert all(isinstance(track, FoundTrack) for track in tracks_of(bytes(flipped)))
        except FormatError:
            pass


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_camera_12_a_description_without_parameter_sets_is_no_configuration(codec: str) -> None:
    """The caller waits for the first keyframe; its sets are enough."""
    with pytest.raises(SourceNotVideoError, match="parameter sets"):
        video_config(codec, b"", 320, 240)
    units = AccessUnits(codec)
    assert units.convert(encode_video(codec).packets[0][0]) is not None
    config = video_config(codec, units.sets.annexb(), 0, 0)
    assert (config.width, config.height, config.timescale) == (320, 240, 90_000)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_camera_13_flapping_sets_keep_the_configuration_and_another_size_changes_it(codec: str) -> None:
    """`continues` says whether the volume must be cut."""
    small, large = (encode_video(codec, width=width, height=240, frames=1) for width in (320, 640))
    one = video_config(codec, small.extradata, 320, 240)
    assert not one.continues(video_config(codec, large.extradata, 320, 240))
    flapped = TrackConfig(one.media, one.codec, one.timescale, one.trak + b"other sets", one.width, one.height)
    assert one.continues(flapped)


def test_camera_13_only_configurations_of_a_usual_size_are_kept() -> None:
    """A camera that sends hundreds of large parameter sets, always others, would fill gigabytes with configurations that come once."""
    usual = encode_video("h264", width=320, height=240, frames=1).extradata
    assert video_config("h264", usual, 320, 240) is video_config("h264", usual, 320, 240)
    large = usual + b"\0\0\0\1\x68\x70" + b"\x55" * CACHED_BYTES_MAX  # a picture parameter set of another number
    kept = init._video.cache_info().currsize
    assert video_config("h264", large[:-8], 320, 240) is not video_config("h264", large[:-8], 320, 240)
    assert init._video.cache_info().currsize == kept


def test_camera_19_sound_that_mp4_does_not_carry_is_refused_with_a_hint() -> None:
    """G.711 is transcoded or left out; its failure is its own."""
    with pytest.raises(SourceNotVideoError, match="cannot be stored") as caught:
        audio_config("pcm_alaw", 8000, 1)
    assert "aac" in caught.value.hint
    with pytest.raises(SourceNotVideoError):
        audio_config("aac", 0, 1)
    with pytest.raises(SourceNotVideoError):
        video_config("vp8", b"", 320, 240)
    with pytest.raises(SourceNotVideoError, match="size"):
        video_config("mjpeg", b"", 0, 0)


@pytest.mark.parametrize("rate", AAC_RATES)
def test_camera_22_aac_without_a_description_gets_one(rate: int) -> None:
    """libav reads back what rate and channels say; a rate that AAC does not have is refused."""
    config = audio_config("aac", rate, 2)
    assert config == audio_config("aac", rate, 2, audio_specific_config(rate, 2))
    with av.open(io.BytesIO(ftyp() + moov([Named("a", config)])), "r") as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.sample_rate, stream.codec_context.channels) == (rate, 2)
    with pytest.raises(SourceNotVideoError, match="Hz"):
        audio_config("aac", rate + 1, 2)


@pytest.mark.servers
@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
def test_ffprobe_reads_all_of_it(tmp_path: Path) -> None:
    """Debian's ffprobe, years older than our libav, counts every packet of every track and complains about nothing."""
    pairs = [(encode_video(codec), 48_000) for codec in VIDEO_CODECS]
    pairs += [(encode_audio(codec, sample_rate=rate), rate) for codec, rate in AUDIO_CODECS if not codec.startswith("pcm")]
    path = tmp_path / "volume.mp4"
    path.write_bytes(file_of(*((f"camera {n}", encoded, config_of(encoded, rate)) for n, (encoded, rate) in enumerate(pairs))))
    result = subprocess.run(
        ["ffprobe", "-v", "error", "-count_packets", "-show_streams", "-of", "json", path], check=True, capture_output=True, text=True
    )
    assert result.stderr == ""
    streams = json.loads(result.stdout)["streams"]
    assert [int(stream["nb_read_packets"]) for stream in streams] == [len(encoded.packets) for encoded, _ in pairs]
    assert [stream["tags"]["handler_name"] for stream in streams] == [f"camera {n}" for n in range(len(pairs))]


def test_access_units_survive_the_way_through_the_file() -> None:
    """What libav hands out is the sample's data itself: lengths and NAL units."""
    encoded = encode_video("h264")
    (packets,) = demuxed(file_of(("a", encoded, config_of(encoded)))).values()
    units = AccessUnits("h264")
    for (_, _, stored, _), (data, *_) in zip(packets, encoded.packets, strict=True):
        unit = units.convert(data)
        assert unit is not None
        assert split_lengths(stored) == split_lengths(unit.data)


def test_media_is_what_the_handler_says() -> None:
    """Sound and picture are told by their handler type, whatever the name."""
    found = tracks_of(moov([Named("soun", config_of(encode_video("h264"))), Named("vide", config_of(encode_audio("aac")))]))
    assert [track.config.media for track in found] == [Media.VIDEO, Media.AUDIO]
