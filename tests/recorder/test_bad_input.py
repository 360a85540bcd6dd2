"""Bad input through the real command line: a sentence, a hint, the right exit status; nothing lost, nothing hung."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import copied, flip, nvrstore, refused, scanned, together
from tests.support.recorder import JOURNAL, Process, Site, small_farm

from nvrstore.drills.account import take_account, volumes_in
from nvrstore.drills.fuse_disk import FuseDisk
from nvrstore.limits import BACKOFF_REFUSED_S_MIN
from nvrstore.model import Cause, Gap, Media, RecordKind

pytestmark = pytest.mark.slow

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras, two targets, closed volumes, a catalog: made once by the real thing, and only read."""
    folder = tmp_path_factory.mktemp("recorded")
    with small_farm(2) as farm:
        process = Process(Site(folder, farm, journal={"volume_age_s": 2.5}))
        process.wait_recording(2)
        process.wait_for(lambda e: e.get("event") == "status" and min(s["samples"] for s in e["streams"]) > 150)
        assert process.end() == 0
    return folder


@pytest.fixture
def place(recorded: Path, tmp_path: Path) -> Path:
    """The configuration of a copy that may be damaged."""
    return copied(recorded, tmp_path)


# --- configurations


MISTAKES = """\
format = 1
[recorder]
name = "nvr 1"
state = "state"
[[target]]
name = "a"
path = "a"
[[journal]]
name = "main"
targets = ["a", "arry-b"]
hold_down_s = -1
[[stream]]
id = "gate"
url = "gopher://admin:geheim@10.0.0.5/main"
[[stream]]
id = "yard"
urll = "rtsp://admin:geheim@10.0.0.6/main"
"""


@pytest.mark.parametrize("verb", [("record",), ("status",), ("ls",), ("catalog", "rebuild")])
def test_all_mistakes_of_a_configuration_are_told_at_once_with_their_places(tmp_path: Path, verb: tuple[str, ...]) -> None:
    """One round of corrections, not five; and no password among them."""
    file = tmp_path / "nvr.toml"
    file.write_text(MISTAKES)
    ran = nvrstore(*verb, file)
    assert (ran.status, ran.out) == (2, "")
    for place, sentence in (
        (":3 recorder.name", "must be at most 64 letters"),
        (":10 journal[0].targets[1]", "there is no target 'arry-b'; known: a"),
        (":11 journal[0].hold_down_s", "must be at least 0"),
        (":14 stream[0].url", "has a scheme that is not known"),
        (":17 stream[1].urll", "is an unknown key; did you mean 'url'?"),
    ):
        assert any(place in line and sentence in line for line in ran.err.splitlines()), (place, ran.err)
    assert "hint: correct the places" in ran.err
    assert "geheim" not in ran.err
    if verb == ("record",):
        error = nvrstore(*verb, file, "--json").error
        assert {problem["place"].rsplit(":", 1)[1] for problem in error["problems"]} >= {"3 recorder.name", "17 stream[1].urll"}
        assert "geheim" not in json.dumps(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nvr.toml"]


def test_a_configuration_that_is_not_there_or_not_toml(tmp_path: Path) -> None:
    """Which file, and why."""
    refused("record", tmp_path / "no.toml", status=2, sentence="cannot be read: No such file", hint="correct")
    (tmp_path / "x.toml").write_text("format = 1\n[recorder\n")
    refused("record", tmp_path / "x.toml", status=2, sentence="x.toml:2: is not TOML", hint="correct")
    (tmp_path / "y.toml").write_bytes(b"\xff\xfe\x00")
    refused("ls", tmp_path / "y.toml", status=2, sentence="is not UTF-8", hint="correct", shown=False)


def test_a_bare_directory_is_never_filled(recorded: Path, tmp_path: Path) -> None:
    """A mount that is missing shows an empty directory: refused by `record`, passed over by those that read, left empty by all."""
    config = copied(recorded, tmp_path)
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").mkdir()
    shutil.rmtree(tmp_path / "state")
    refused("record", config, status=2, sentence=f"in its directory: {tmp_path / 'a'}", hint="nvrstore target init")
    assert nvrstore("verify", config).status == 3
    ran = nvrstore("ls", config)
    assert (ran.status, "cam0" in ran.out) == (0, True)
    assert "target 'a' did not answer" in ran.err
    refused("ls", tmp_path / "a", status=2, sentence="it is no target", hint="nvrstore target init")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_state_directory_that_cannot_be_used(place: Path) -> None:
    """Before anything is touched."""
    shutil.rmtree(place.parent / "state")
    (place.parent / "state").write_text("a file")
    refused("record", place, status=2, sentence="it must be a writable directory", hint="correct", shown=False)


def test_what_is_no_target_cannot_become_one_by_mistake(place: Path) -> None:
    """A target that is one, a directory in use, a file, a path into nothing."""
    root = place.parent
    refused("target", "init", root / "a", status=2, sentence="it already is one", hint="ready", shown=False)
    refused("target", "init", root, status=2, sentence="the directory is not empty", hint="--force", shown=False)
    refused("target", "init", place, status=3, sentence="ENOTDIR", hint="a target is a directory", shown=False)
    refused("target", "init", root / "no" / "where", status=2, sentence="cannot be made", hint="is it mounted?")
    assert not (root / "target.json").exists()


# --- cameras


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        text = b"<html>no video here</html>" * 50
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def web_page() -> Iterator[int]:
    """An HTTP server that gives text; its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def mute_server() -> Iterator[int]:
    """It accepts, and says nothing; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


BAD_CAMERAS = {  # state, cause, a piece of the sentence, a piece of the hint
    "locked": ("refused", "refused", "the camera refuses the login", "SIGHUP"),
    "locked-url": ("refused", "refused", "the camera refuses the login", "SIGHUP"),
    "no-login": ("waiting", "camera", "the login file", "user:password"),
    "closed": ("waiting", "camera", "Connection refused", "check the address"),
    "no-name": ("waiting", "camera", "the name cannot be resolved", "check the address"),
    "mute": ("waiting", "camera", "no answer within", "limit of clients"),
    "page": ("waiting", "camera", "page.html", "ffprobe"),
    "not-rtsp": ("waiting", "camera", "no sensible answer", "is that an RTSP port?"),
    "wrong-path": ("waiting", "camera", "there is nothing at this path", "check the path"),
    "text": ("waiting", "camera", "notes.txt", ""),
    "no-file": ("waiting", "camera", "No such file or directory", "check the path"),
    "folder": ("waiting", "camera", "Is a directory", "check the path"),
}


def bad_cameras(site: Site, good: str, locked: str, page: int, mute: int) -> list[dict[str, Any]]:
    folder = site.folder
    (folder / "notes.txt").write_text("no video at all\n" * 500)
    (folder / "login").write_text("admin:wrong\n")
    urls = {
        "locked": locked,
        "locked-url": locked.replace("rtsp://", "rtsp://admin:wr0ng@"),
        "no-login": good,
        "closed": f"rtsp://127.0.0.1:{closed_port()}/main",
        "no-name": "rtsp://no-such-camera.invalid/main",
        "mute": f"rtsp://127.0.0.1:{mute}/main",
        "page": f"http://127.0.0.1:{page}/page.html",
        "not-rtsp": f"rtsp://127.0.0.1:{page}/main",
        "wrong-path": good + "-or-not",
        "text": str(folder / "notes.txt"),
        "no-file": str(folder / "nothing.mp4"),
        "folder": str(folder),
    }
    logins = {"locked": f"file:{folder / 'login'}", "no-login": f"file:{folder / 'nothing'}"}
    return [{"id": name, "url": url, "silence_s": 2.0, **({"login": logins[name]} if name in logins else {})} for name, url in urls.items()]


def test_cameras_that_cannot_be_recorded_are_told_apart_and_harm_nobody(tmp_path: Path) -> None:
    """Each with its state, sentence, hint and gap; the good one loses no frame; a login that was corrected is tried at once."""
    with small_farm(1) as farm, small_farm(1, auth="digest", password=PASSWORD) as guarded, web_page() as page, mute_server() as mute:
        site = Site(tmp_path, farm)
        tables = site.tables()
        tables["stream"] += bad_cameras(site, farm.url(0), guarded.url(0, login=False), page, mute)
        site.tables = lambda: tables  # type: ignore[method-assign]
        site.write()
        process = Process(site)
        try:
            process.wait_recording(1)

            def told(event: dict[str, Any]) -> bool:
                if event.get("event") != "status":
                    return False
                streams = {s["stream"]: s for s in event["streams"]}
                return all(streams[name]["reason"] and streams[name]["gap"] for name in BAD_CAMERAS)

            process.wait_for(told, 60.0)
            _each_is_told(site)
            _others_are_kept_out(site, tmp_path)
            (tmp_path / "login").write_text(f"admin:{PASSWORD}\n")
            process.process.send_signal(signal.SIGHUP)
            process.wait_for(lambda e: e.get("event") == "StreamChanged" and (e["stream"], e["state"]) == ("locked", "recording"))
            process.wait_for(lambda e: e.get("event") == "GapClosed" and e["gap"]["stream"] == "locked")
            sent = farm.stop_sending()
            process.wait_for(lambda e: e.get("event") == "StreamChanged" and (e["stream"], e["state"]) == ("cam0", "waiting"))
        finally:
            assert process.end() == 0
        log = [json.loads(line) for line in process.errors.splitlines() if line.startswith("{")]
        refusals = [line for line in log if line["event"] == "stream.lost" and line["stream"].startswith("locked")]
        assert len(refusals) <= 3  # once each, and `locked-url` once more after the signal
        assert min(line["next_try_s"] for line in refusals) >= BACKOFF_REFUSED_S_MIN
        account = site.account()
        assert site.lost(sent, account) == {}
        assert account.damage == ()
        gaps = {gap.id: gap for gap in map(Gap.of, (r for r in account.records if r.kind == RecordKind.GAP))}
        causes = {name: {gap.cause for gap in gaps.values() if gap.stream == name} for name in BAD_CAMERAS}
        assert causes == {name: {Cause(cause)} for name, (_, cause, _, _) in BAD_CAMERAS.items()}
        assert PASSWORD not in process.errors + json.dumps(process.events)


def _each_is_told(site: Site) -> None:
    status = nvrstore("status", site.file, "--json").json
    streams = {s["stream"]: s for s in status["streams"]}
    for name, (state, cause, sentence, hint) in BAD_CAMERAS.items():
        stream = streams[name]
        assert stream["state"] in (state, "connecting"), stream
        assert sentence in stream["reason"], stream
        assert hint in stream["hint"], stream
        assert stream["gap"]["cause"] == cause, stream
        assert stream["stored_bytes"] == 0
    assert streams["cam0"]["state"] == "recording"
    shown = nvrstore("status", site.file)
    assert shown.status == 0
    for name, (_, _, sentence, hint) in BAD_CAMERAS.items():
        assert any(line.startswith(name) and sentence in line for line in shown.out.splitlines()), shown.out
        assert hint in shown.out


def _others_are_kept_out(site: Site, tmp_path: Path) -> None:
    """What must not happen beside a running recorder, and what may."""
    refused("catalog", "rebuild", site.file, status=2, sentence="a recorder writes the catalog", hint="stop it first", shown=False)
    refused("record", site.file, status=2, sentence="another recorder has the state directory", hint="stop the other recorder", shown=False)
    assert "cam0" in nvrstore("ls", site.file).out
    report = nvrstore("export", site.file, "cam0", "--from", "-1h", "--to", "now", "-o", tmp_path / "clip.mp4", "--json")
    assert (report.status, report.json["frames"] > 0) == (0, True)


# --- what is stored


def test_flipped_bytes_are_named_and_the_other_copy_is_served(place: Path) -> None:
    """A fragment, a batch header, a `moov`: volume, offset, track, time; the clip is what it was before."""
    root = place.parent
    words = ("export", place, "cam1", "--from", "-1d", "--to", "now", "--json", "-o")
    before = nvrstore(*words, root / "before.mp4").json
    *_, first, last = volumes_in(root / "a", JOURNAL)
    volume = scanned(root / "a" / first)
    assert volume.header is not None
    track = next(n for n, t in enumerate(volume.header.tracks, start=1) if (t.track.stream, t.track.media) == ("cam1", Media.VIDEO))
    batch, *_, other = [b for b in volume.batches if any(e.track_id == track for e in b.entries)]
    entry = next(e for e in batch.entries if e.track_id == track)
    flips = {
        "fragment": (first, batch.offset + entry.offset + 200),
        "batch header": (first, other.offset + 70),
        "volume header": (last, (root / "a" / last).read_bytes().index(b"moov") + 300),
    }
    for path, offset in flips.values():
        flip(root / "a" / path, offset)

    found, shown = together(("verify", place, "--json"), ("verify", place))
    assert (found.status, shown.status) == (1, 1)
    damage = {d["kind"]: d for d in found.json["damage"]}
    assert set(damage) == set(flips)
    for kind, (path, offset) in flips.items():
        one = damage[kind]
        assert (one["target"], one["path"], one["whole_on"]) == ("a", str(path), ["b"])
        assert one["offset"] <= offset < one["offset"] + one["length"]
        assert any(line.startswith("a ") and str(path) in line and kind in line for line in shown.out.splitlines())
    one = damage["fragment"]
    assert (one["tracks"], one["start_ns"]) == ([{"stream": "cam1", "media": "video"}], entry.utc_ns)

    clip = nvrstore(*words, root / "after.mp4")
    assert clip.status == 0
    assert clip.json["sha256"] == before["sha256"] == hashlib.sha256((root / "after.mp4").read_bytes()).hexdigest()
    assert "b" in clip.json["sources"][str(first)]


def test_files_that_are_no_volumes_are_told_and_keep_nobody_from_recording(place: Path) -> None:
    """Rubbish, an empty file, a directory, a link into itself, a FIFO, all under names of volumes; and one nobody may read."""
    root = place.parent
    day = next((root / "a" / JOURNAL).glob("2*"))
    names = [day / f"00-00-0{n}Z.t0001-0123abcd.l0.v00000{n}.mp4" for n in range(6)]
    names[0].write_bytes(os.urandom(100_000))
    names[1].write_bytes(b"")
    names[2].mkdir()
    names[3].symlink_to(names[3])
    os.mkfifo(names[4])
    shutil.copy(day / volumes_in(root / "b", JOURNAL)[0].name, names[5])
    names[5].chmod(0)
    (day / "notes.txt").write_text("not ours")
    found = nvrstore("verify", place, "--json")
    assert found.status == 1
    strangers = {Path(d["path"]).name for d in found.json["damage"]}
    assert {names[0].name, names[1].name} <= strangers
    assert strangers.isdisjoint({names[2].name, names[4].name, "notes.txt"})
    rebuilt = nvrstore("catalog", "rebuild", place)
    assert (rebuilt.status, names[0].name in rebuilt.err) == (0, True)
    assert nvrstore("ls", place, "volumes").status == 0
    words = ("export", place, "cam0", "--from", "-1d", "--to", "now", "-o")
    assert nvrstore(*words, root / "clip.mp4").status == 0
    ran = nvrstore("record", place, "--seconds", "4", "--json")
    assert ran.status == 0
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert [e for e in events if e["event"] == "TargetLost"] == []
    assert all(name.is_symlink() or name.exists() for name in names)  # nothing that is not ours was touched


def test_identity_files_that_cannot_be_read_are_never_guessed(place: Path) -> None:
    """A journal of unknown identity is refused; a target of unknown identity is away, and gets no byte."""
    root = place.parent
    whole = (root / "a" / JOURNAL / "journal.json").read_bytes()
    (root / "a" / JOURNAL / "journal.json").write_text("{")
    refused("record", place, status=2, sentence="journal.json cannot be read", hint="restore it from another target")
    (root / "a" / JOURNAL / "journal.json").write_bytes(whole)
    (root / "a" / "target.json").write_text("{")
    before = sorted(path.relative_to(root) for path in (root / "a").rglob("*"))
    ran = nvrstore("record", place, "--seconds", "2", "--json")
    assert (ran.status, "target.json cannot be read" in ran.err) == (0, True)
    assert sorted(path.relative_to(root) for path in (root / "a").rglob("*")) == before


# --- questions


def test_what_cannot_be_asked(place: Path) -> None:
    """Unknown names, spans of nothing, times that are none, places to write that are not there."""
    root = place.parent
    clip = root / "clip.mp4"
    span = ("--from", "-1d", "--to", "now")
    refused("status", place, status=3, sentence="no recorder answers", hint="nvrstore record")
    refused("export", place, "cam9", *span, status=1, sentence="no footage of stream 'cam9'", hint="nvrstore ls")
    refused("export", place, "cam0", "--from", "-9d", "--to", "-8d", "-o", clip, status=1, sentence="nothing is stored of cam0", hint="ls")
    refused("export", place, "cam0", "--from", "now", "--to", "-1d", "-o", clip, status=2, sentence="behind its start", hint="earlier")
    refused("export", place, "cam0", "--from", "2026-13-01", "--to", "now", "-o", clip, status=2, sentence="is no time", hint="2026-11-23")
    refused(
        "export", place, "cam0", *span, "-o", root / "no" / "x.mp4", status=1, sentence="cannot be written", hint="directory that exists"
    )
    refused("export", place, "cam0", "-o", clip, status=2, sentence="Missing option", hint="export --help", shown=False)
    refused("ls", place, "--from", "now", "--to", "-1h", status=2, sentence="the end lies before the start", hint="--from", shown=False)
    refused("ls", place, "gaps", "--stream", "cam9", status=1, sentence="no footage of stream 'cam9'", hint="nvrstore ls", shown=False)
    refused("ls", place, "wombats", status=2, sentence="wombats", hint="ls --help", shown=False)
    refused("ls", root / "nothing.mp4", status=2, sentence="there is no file", hint="PLACE is", shown=False)
    refused("verify", place, "--target", "c", status=2, sentence="there is no target 'c'", hint="a, b", shown=False)
    refused("wombat", status=2, sentence="No such command 'wombat'", hint="nvrstore --help", shown=False)
    assert not clip.exists()
    clip.write_text("somebody's")
    refused("export", place, "cam0", *span, "-o", clip, status=2, sentence="exists already", hint="--force", shown=False)
    assert clip.read_text() == "somebody's"
    assert [path for path in root.iterdir() if ".part" in path.name] == []


def test_times_without_an_offset_are_local(place: Path) -> None:
    """As on the clock on the wall of whoever types; with an offset, as said."""
    stream, _ = nvrstore("ls", place, "--json").json["streams"]
    begin = stream["first_ns"] // 1_000_000_000
    local = datetime.fromtimestamp(begin, timezone(timedelta(hours=9)))
    naive = local.replace(tzinfo=None).isoformat()
    for text, found in ((naive, 1), (local.isoformat(), 1), (f"{naive}Z", 0)):
        ran = nvrstore("ls", place, "--stream", "cam0", "--from", text, "--json", TZ="Asia/Tokyo")
        assert len(ran.json["streams"]) == found, text


# --- targets that do not answer


@pytest.mark.root
def test_a_hung_target_hangs_no_command(recorded: Path, tmp_path: Path) -> None:
    """Also stat and open do not come back: those that read say which target was passed over, those that need it say that it is away."""
    config = copied(recorded, tmp_path)
    (tmp_path / "a").rename(tmp_path / "backing")
    (tmp_path / "a").mkdir()
    volume = tmp_path / "a" / volumes_in(tmp_path / "b", JOURNAL)[0]
    (tmp_path / "state" / "catalog.sqlite").unlink()
    beside = tmp_path / "beside.toml"  # the same targets, another catalog: what rebuilds it disturbs nobody
    beside.write_text(config.read_text().replace(str(tmp_path / "state"), str(tmp_path / "rebuilt")))
    with FuseDisk.mounted(tmp_path / "backing", tmp_path / "a") as disk:
        disk.hang()
        clip = tmp_path / "clip.mp4"
        listed, exported, verified, rebuilt, *away = together(
            ("ls", config),
            ("export", config, "cam0", "--from", "-1d", "--to", "now", "-o", clip),
            ("verify", config),
            ("catalog", "rebuild", beside),
            ("ls", tmp_path / "a", "--json"),
            ("verify", volume, "--json"),
            ("target", "init", tmp_path / "a", "--json"),
        )
        assert (listed.status, "cam0" in listed.out) == (0, True)
        assert "target 'a' did not answer" in listed.err
        assert (exported.status, clip.exists()) == (0, True)
        assert (verified.status, "not checked: a" in verified.err) == (3, True)
        assert rebuilt.status == 3
        for ran in away:
            assert (ran.status, "did not answer" in ran.error["message"], "check the mount" in ran.error["hint"]) == (3, True, True)
        ran = nvrstore("record", config, "--seconds", "3", "--json")
        assert ran.status == 0
        events = [json.loads(line) for line in ran.out.splitlines()]
        opened = {e["gap"]["id"] for e in events if e["event"] == "GapOpened"}
        assert [(e["target"], e["after"]) for e in events if e["event"] == "TargetChanged"][-1] == ("b", "joining")  # alone
    account = take_account(tmp_path / "b", JOURNAL)
    assert account.damage == ()
    # That no camera answered is written down there, if it was known in time (somebody else may have the camera's port by now).
    assert opened <= {record.id for record in account.records if record.kind == RecordKind.GAP}
