"""Logs: silent by default, structured, and never with a credential in them."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.support.logs import logger_restored

from nvrstore.telemetry import configure_cli_logging, get_logger

SECRET = "rtsp://admin:hunter2@10.0.0.5/main"


@pytest.fixture
def cli_stream() -> Iterator[io.StringIO]:
    """A stream to log to; what the command line configured is taken back afterwards."""
    with logger_restored():
        yield io.StringIO()


def test_an_unconfigured_host_sees_nothing() -> None:
    """A library prints nothing until the host configures logging: neither to stdout (structlog's default) nor to stderr."""
    code = "from nvrstore.telemetry import get_logger; get_logger('x').error('target.lost', target='a')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_events_arrive_with_their_fields_and_the_callers_line(caplog: pytest.LogCaptureFixture) -> None:
    """A host's handler gets one line, the fields as values, and the place that logged."""
    with caplog.at_level(logging.INFO, logger="nvrstore"):
        get_logger("targets.node").info("session.opened", target="b", after_s=0.25, note="two words")
    (record,) = caplog.records
    assert record.name == "nvrstore.targets.node"
    assert record.getMessage() == 'session.opened target=b after_s=0.25 note="two words"'
    assert record.nvrstore == {"event": "session.opened", "target": "b", "after_s": 0.25, "note": "two words"}  # type: ignore[attr-defined]
    assert record.funcName == "test_events_arrive_with_their_fields_and_the_callers_line"


def test_module_names_are_taken_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    """`get_logger(__name__)` and `get_logger("ingest")` end in the same tree."""
    with caplog.at_level(logging.WARNING, logger="nvrstore"):
        get_logger("nvrstore.ingest").warning("camera.lost")
        get_logger("ingest").warning("camera.lost")
    assert [r.name for r in caplog.records] == ["nvrstore.ingest", "nvrstore.ingest"]


@pytest.mark.parametrize("as_json", [False, True])
def test_credentials_never_leave(cli_stream: io.StringIO, as_json: bool) -> None:
    """In a message, a field, a nested field, an exception, a traceback: the user-info of a URL is gone."""
    configure_cli_logging(level="debug", as_json=as_json, stream=cli_stream)
    log = get_logger("ingest").bind(url=SECRET)
    log.info(f"opening {SECRET}", nested={"a": [SECRET], "password": "hunter2"}, error=ValueError(SECRET), password="hunter2")
    try:
        raise ValueError(SECRET)
    except ValueError:
        log.exception("camera.failed")
        log.warning("camera.failed", exc_info=True)
    logging.getLogger("nvrstore.plain").warning("no structlog here")
    text = cli_stream.getvalue()
    assert "hunter2" not in text
    assert text.count("ValueError") >= 2
    assert "10.0.0.5/main" in text


def test_json_lines_are_objects_with_time_level_and_fields(cli_stream: io.StringIO) -> None:
    """What `--json` verbs log can be read by a machine, line by line."""
    configure_cli_logging(level="info", as_json=True, stream=cli_stream)
    get_logger("replicate").warning("target.lost", target="a", age_s=1.5)
    get_logger("replicate").debug("never.shown")
    (line,) = cli_stream.getvalue().splitlines()
    event = json.loads(line)
    assert event.pop("time").endswith("Z")
    assert event == {"level": "warning", "logger": "nvrstore.replicate", "event": "target.lost", "target": "a", "age_s": 1.5}


def test_configuring_twice_shows_every_event_once(cli_stream: io.StringIO) -> None:
    """The second call replaces the first."""
    configure_cli_logging(level="info", stream=io.StringIO())
    configure_cli_logging(level="info", stream=cli_stream)
    get_logger("x").info("thing.happened")
    assert len(cli_stream.getvalue().splitlines()) == 1


def test_a_hosts_structlog_configuration_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The host may configure structlog for itself: our events still go through logging, in our form."""
    import structlog

    with structlog.testing.capture_logs() as captured, caplog.at_level(logging.INFO, logger="nvrstore"):
        get_logger("fresh").info("thing.happened", n=1)
    assert captured == []
    assert caplog.messages == ["thing.happened n=1"]
