"""From the streams that are recorded to those that another configuration wants."""

from __future__ import annotations

import pytest

from nvrstore.config import StreamConfig
from nvrstore.errors import UsageError
from nvrstore.recorder.follow import Changes, changes


def stream(name: str, journal: str = "main", path: str = "main") -> StreamConfig:
    return StreamConfig(id=name, url=f"rtsp://10.0.0.5/{path}", journal=journal)


def test_what_is_the_same_is_kept_and_everything_else_has_one_fate() -> None:
    """Whoever is not named anywhere records on untouched."""
    running = [stream("gate"), stream("yard"), stream("door")]
    wanted = [stream("hall"), stream("yard", path="sub"), stream("gate")]
    assert changes(running, wanted, ["main"]) == Changes(
        remove=("door",), change=(stream("yard", path="sub"),), add=(stream("hall"),), keep=("gate",)
    )


@pytest.mark.parametrize("astray", [stream("yard", "second"), stream("new", "second")])
def test_a_journal_that_does_not_run_is_refused_as_a_whole(astray: StreamConfig) -> None:
    """By name, with the next step, before anything is done."""
    with pytest.raises(UsageError, match=f"'{astray.id}' into journal 'second'.*started again") as caught:
        changes([stream("gate"), stream("yard")], [stream("gate", path="sub"), astray], ["main"])
    assert "restart" in caught.value.hint
