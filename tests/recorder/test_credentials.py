"""Credentials never appear: not in logs, `ps`, errors, JSON, the control socket, the catalog, or the footage."""

from __future__ import annotations

import base64
import json
import pickle
import socket
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, quote_plus

import anyio
import pytest
from tests.support.commands import nvrstore
from tests.support.ingest import Ear
from tests.support.recorder import JOURNAL, Process, Site, small_farm

import nvrstore as library
from nvrstore.clock import SYSTEM_CLOCK
from nvrstore.config import StreamConfig
from nvrstore.errors import ConfigError, NvrstoreError, SourceError
from nvrstore.ingest.contract import Endpoint, SourceRequest
from nvrstore.ingest.engines import choose, default_engines

pytestmark = pytest.mark.slow

RIGHT: Final = "p@ss/w:rd%?#&ü"
WRONG: Final = "wr@ng/0f:c%urse?#&ß"
OTHER: Final = "hunter2-in-a-query"
ENGINES: Final = ("lean", "pyav")


def forms(secret: str, user: str = "admin") -> set[str]:
    """Every way in which a password might slip out, and its telling middle."""
    pair = f"{user}:{secret}".encode()
    encoded = {base64.b64encode(text).decode().rstrip("=") for text in (secret.encode(), pair)}
    escaped = {json.dumps(secret)[1:-1], repr(secret)[1:-1], secret.encode().hex()}
    quoted = {quote(secret), quote(secret, safe=""), quote_plus(secret), quote(quote(secret, safe=""), safe="")}
    return {secret, secret[2:8], *encoded, *escaped, *quoted}


#: What nothing may hold.
SECRETS: Final = tuple(sorted({form for secret in (RIGHT, WRONG, OTHER) for form in forms(secret)}))


def found_in(text: str | bytes) -> list[str]:
    """The secrets that stand in it."""
    data = text.encode() if isinstance(text, str) else text
    return [secret for secret in SECRETS if secret.encode() in data]


@dataclass
class Seen:
    """Everything that a recorder with secrets showed while it ran, by where it was seen; and what it left on disk."""

    folder: Path
    states: dict[str, str]
    shown: dict[str, str | bytes] = field(default_factory=dict)


def streams(good: str, digest: str, basic: str, folder: Path) -> list[dict[str, Any]]:
    (folder / "right").write_text(f"admin:{RIGHT}\n")
    (folder / "wrong").write_text(f"admin:{WRONG}\n")

    def with_login(url: str, password: str) -> str:
        return url.replace("rtsp://", f"rtsp://admin:{quote(password, safe='')}@")

    found = []
    for engine in ENGINES:
        found += [
            {"id": f"{engine}-env", "url": digest, "login": "env:GATE_LOGIN"},
            {"id": f"{engine}-file", "url": digest, "login": f"file:{folder / 'right'}"},
            {"id": f"{engine}-url", "url": with_login(digest, RIGHT)},
            {"id": f"{engine}-basic", "url": with_login(basic, RIGHT)},
            {"id": f"{engine}-bad-env", "url": digest, "login": "env:BAD_LOGIN"},
            {"id": f"{engine}-bad-file", "url": basic, "login": f"file:{folder / 'wrong'}"},
            {"id": f"{engine}-bad-url", "url": with_login(digest, WRONG)},
            {"id": f"{engine}-no-path", "url": with_login(digest, RIGHT) + "-or-not"},
            {"id": f"{engine}-closed", "url": with_login(f"rtsp://127.0.0.1:{closed_port()}/x", RIGHT) + f"?user=admin&pwd={OTHER}"},
        ]
        for stream in found[-9:]:
            stream["engine"] = engine
    query = f"http://127.0.0.1:{closed_port()}/video.cgi?user=admin&password={OTHER}&res=hd"
    path = f"{good}/user=admin_password={OTHER}_channel=1_stream=0.sdp"
    return [
        *found,
        {"id": "query", "url": query},
        {"id": "path", "url": path},
        {"id": "udp", "url": digest, "transport": "udp", "login": "env:GATE_LOGIN"},
    ]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A recorder with logins of all kinds, right and wrong, that logs all it can; looked at from all sides while it runs."""
    folder = tmp_path_factory.mktemp("secrets")
    with ExitStack() as stack:
        good = stack.enter_context(small_farm(1))
        digest, basic = (stack.enter_context(small_farm(1, auth=auth, password=RIGHT)) for auth in ("digest", "basic"))
        site = Site(folder, good)
        tables = site.tables()
        tables["stream"] += streams(good.url(0), digest.url(0, login=False), basic.url(0, login=False), folder)
        site.tables = lambda: tables  # type: ignore[method-assign]
        site.write()
        ids = [stream["id"] for stream in tables["stream"]]
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("GATE_LOGIN", f"admin:{RIGHT}")
        patch.setenv("BAD_LOGIN", f"admin:{WRONG}")
        patch.setenv("NVRSTORE_LOG", "debug")
        process = Process(site)
        result = Seen(folder, {})
        try:
            process.wait_for(
                lambda e: e.get("event") == "status" and all(s["state"] == "recording" or s["reason"] for s in e["streams"]), 60.0
            )
            process.wait_recording(sum(1 for name in ids if name.split("-", 1)[-1] in ("cam0", "env", "file", "url", "basic", "udp")))
            look_at(process, site, result)
        finally:
            assert process.end() == 0
        result.shown["events"] = json.dumps(process.events, ensure_ascii=False)
        result.shown["log"] = process.errors
        result.states = {s["stream"]: s["state"] for e in process.events if e.get("event") == "status" for s in e["streams"]}
        for words in (("ls", site.file, "--json"), ("ls", site.file, "gaps"), ("ls", site.file, "gaps", "--json"), ("verify", site.file)):
            ran = nvrstore(*words)
            result.shown[" ".join(map(str, words))] = ran.out + ran.err
    return result


def settled(event: dict[str, Any]) -> bool:
    """A status in which every stream is recorded, or says why not."""
    return event.get("event") == "status" and all(s["state"] == "recording" or s["reason"] for s in event["streams"])


def look_at(process: Process, site: Site, result: Seen) -> None:
    """`ps`, the workers' environments, thread names, the control socket, and the verb that asks it."""
    for pid in (process.pid, *process.workers()):
        proc = Path(f"/proc/{pid}")
        result.shown[f"{pid} cmdline"] = (proc / "cmdline").read_bytes()
        result.shown[f"{pid} threads"] = b" ".join((task / "comm").read_bytes() for task in (proc / "task").iterdir())
        if pid != process.pid:  # its own holds what it was given
            result.shown[f"{pid} environ"] = (proc / "environ").read_bytes()
    for words in (("status", site.file), ("status", site.file, "--json")):
        ran = nvrstore(*words)
        result.shown[" ".join(map(str, words))] = ran.out + ran.err
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(30.0)
        control.connect(str(site.state / "control.sock"))
        with control.makefile("rb") as lines:
            for request in ({"v": 1, "verb": "status"}, {"v": 1, "verb": "trigger", "args": {"stream": RIGHT[:2]}}, {"v": 9}):
                control.sendall(json.dumps(request).encode() + b"\n")
                result.shown[f"control {request}"] = lines.readline()


def test_every_login_was_used_rightly_or_wrongly(seen: Seen) -> None:
    """Otherwise the tests below would look at nothing: passwords with every awkward character work, wrong ones are refused."""
    for engine in ENGINES:
        for kind in ("env", "file", "url", "basic"):
            assert seen.states[f"{engine}-{kind}"] == "recording"
        for kind in ("bad-env", "bad-file", "bad-url"):
            assert seen.states[f"{engine}-{kind}"] == "refused"
        for kind in ("no-path", "closed"):
            assert seen.states[f"{engine}-{kind}"] in ("waiting", "connecting")
    assert seen.states["udp"] == seen.states["cam0"] == "recording"
    assert {seen.states["query"], seen.states["path"]} <= {"waiting", "connecting"}


def test_no_output_process_or_socket_shows_a_login(seen: Seen) -> None:
    """Standard output and error at level debug, events, status, answers, command lines, environments, thread names."""
    assert {where: found for where, text in seen.shown.items() if (found := found_in(text))} == {}
    assert len([where for where in seen.shown if where.endswith("environ")]) >= 4
    log = str(seen.shown["log"])
    assert '"level": "info"' in log
    assert "127.0.0.1" in log  # addresses are shown, logins are not


def test_nothing_on_disk_holds_a_login(seen: Seen) -> None:
    """The catalog, its journal, the state directory, every byte of every volume; the configuration and the login files are the user's."""
    own = {seen.folder / name for name in ("nvr.toml", "right", "wrong")}
    files = [path for path in seen.folder.rglob("*") if path.is_file() and path not in own]
    assert {str(path): found for path in files if (found := found_in(path.read_bytes()))} == {}
    assert (seen.folder / "state" / "catalog.sqlite") in files
    volumes = [path for path in files if path.suffix == ".mp4"]
    assert volumes
    assert any(b"lean-url" in path.read_bytes() for path in volumes)


def test_a_configuration_shows_no_login(tmp_path: Path) -> None:
    """Not by repr, str, dumps, warnings, or mistakes."""
    url = f"rtsp://admin:{quote(RIGHT, safe='')}@10.0.0.5/main?password={OTHER}"
    config = library.Config.parse(
        {
            "recorder": {"name": "nvr", "state": str(tmp_path)},
            "target": [{"name": "a", "path": str(tmp_path / "a")}],
            "journal": [{"name": JOURNAL, "targets": ["a"]}],
            "stream": [{"id": "gate", "url": url, "options": {"headers": f"Authorization: {OTHER}"}}],
        }
    )
    (stream,) = config.streams
    assert stream.resolve_login() == ("admin", RIGHT)
    shown = [repr(config), str(config), f"{stream!r} {stream}", config.model_dump_json(), str(config.model_dump()), str(config.warnings())]
    assert found_in("\n".join(shown)) == []
    assert pickle.loads(pickle.dumps(config)).streams[0].resolve_login() == ("admin", RIGHT)  # for a process of one's own, not for showing
    for wrong in (
        {"url": url, "login": "env:X"},
        {"url": url, "transport": "pigeon"},
        {"url": url.replace("rtsp", "rstp")},
        {"url": url, "urll": url},
    ):
        with pytest.raises(ValueError, match="validation error") as invalid:
            StreamConfig.model_validate({"id": "gate", "url": url, **wrong})
        assert found_in("".join(traceback.format_exception(invalid.value)) + repr(invalid.value.__dict__)) == []
        with pytest.raises(ConfigError) as caught:
            library.Config.parse({"stream": [{"id": "gate", "url": url, **wrong}]})
        assert found_in("".join(traceback.format_exception(caught.value)) + repr(caught.value.problems)) == []


def everything(error: BaseException) -> str:
    """All that a host could print of an error."""
    parts = [str(error), repr(error), repr(error.args), repr(getattr(error, "__dict__", {})), *traceback.format_exception(error)]
    parts += [everything(inner) for inner in (error.__cause__, error.__context__) if inner is not None]
    return "\n".join(parts)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("what", ["refused", "closed", "no path", "no host", "hook fails", "hook tells", "login in the url"])
def test_the_error_of_a_session_holds_no_login(engine: str, what: str) -> None:
    """Whatever fails, and whoever says so: neither its text, nor its fields, nor what it was raised from."""
    with small_farm(1, auth="digest", password=RIGHT) as farm:
        base = farm.url(0, login=False)

        def resolve() -> Endpoint:
            match what:
                case "refused":
                    return Endpoint(base, ("admin", WRONG))
                case "closed":
                    return Endpoint(f"rtsp://127.0.0.1:{closed_port()}/x", ("admin", RIGHT))
                case "no path":
                    return Endpoint(base + "-or-not", ("admin", RIGHT))
                case "no host":
                    return Endpoint("rtsp://no-such-camera.invalid/x", ("admin", RIGHT))
                case "hook fails":
                    raise RuntimeError(f"the vault said admin:{RIGHT}")
                case "hook tells":
                    raise SourceError(f"no camera at rtsp://admin:{quote(RIGHT, safe='')}@10.0.0.5/main")
            return Endpoint(base.replace("rtsp://", f"rtsp://admin:{quote(WRONG, safe='')}@"))

        ear = Ear()
        source = choose(default_engines(), engine)(SourceRequest("gate", resolve, timeout_s=5.0), ear, SYSTEM_CLOCK)
        source.start()
        try:
            error = ear.end()
        finally:
            source.stop()
            assert source.join(5.0)
    assert found_in(everything(error)) == []
    assert isinstance(error, NvrstoreError)


def test_a_host_that_brings_its_own_logins_finds_them_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`resolve` asks a vault: what it returns, and what it says when it fails, stays where it is needed."""
    caplog.set_level("DEBUG", logger="nvrstore")
    shown: list[str] = []
    with small_farm(2, auth="digest", password=RIGHT) as farm:
        site = Site(tmp_path, farm)
        site.file.unlink()
        tables = site.tables()
        for stream, url in zip(tables["stream"], ("vault:gate", "vault:yard"), strict=True):
            stream["url"] = f"rtsp://{url.replace(':', '.')}/"
        tables["stream"].append({"id": "broken", "url": "rtsp://vault.broken/"})

        def resolve(stream: StreamConfig) -> Endpoint:
            if stream.id == "broken":
                raise SourceError(f"rtsp://admin:{quote(RIGHT, safe='')}@10.0.0.5/ is not in the vault")
            return Endpoint(farm.url(int(stream.id[3:]), login=False), ("admin", RIGHT if stream.id == "cam0" else WRONG))

        async def run() -> None:
            async with library.Recorder(library.Config.parse(tables), resolve=resolve) as recorder, recorder.events() as happened:
                with anyio.fail_after(60):
                    while recorder.stream("cam0").durable_until() is None or recorder.stream("cam1").status().state != "refused":
                        shown.append(repr((await happened.receive()).as_json()))
                shown.extend([json.dumps(recorder.statistics()), repr(recorder.stream("broken").status()), repr(recorder.config)])
                with pytest.raises(NvrstoreError) as caught:
                    await recorder.add_stream(StreamConfig(id="cam0", url=f"rtsp://admin:{quote(RIGHT, safe='')}@10.0.0.5/"))
                shown.append(everything(caught.value))

        anyio.run(run)
    assert found_in("\n".join([*shown, caplog.text])) == []
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert found_in(path.read_bytes()) == [], path
