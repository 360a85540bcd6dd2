"""Where things lie on a target, as paths relative to its root with "/" between parts.

    target.json                                               names the target
    <journal>/journal.json                                    names the journal
    <journal>/epochs/  .next/  trash/                         claims of terms; volumes being prepared; volumes being deleted
    <journal>/2026-11-23/07-45-10Z.t0008-9f2c41aa.l0.v000042.mp4
              day        time UTC  term  writer   lane number

A volume's name is for people and for listing; it is never reused. What it says stands again in the volume's header, which
is the truth. The order of volumes is (term, number), never the time in the name: clocks step. Touches no file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import total_ordering
from typing import Final

from nvrstore.journal.model import VolumeHeader
from nvrstore.model import NS_PER_S

TARGET_FILE: Final = "target.json"
JOURNAL_FILE: Final = "journal.json"
EPOCHS_DIR: Final = "epochs"
NEXT_DIR: Final = ".next"
TRASH_DIR: Final = "trash"
VOLUME_SUFFIX: Final = ".mp4"

_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_FILE: Final = re.compile(
    r"(?P<time>\d{2}-\d{2}-\d{2})Z\.t(?P<term>\d{4,20})-(?P<tag>[0-9a-f]{8})\.l(?P<lane>\d{1,10})\.v(?P<number>\d{6,20})\.mp4", re.ASCII
)


@total_ordering
@dataclass(frozen=True, slots=True)
class VolumeName:
    """What a volume's path says. Sorts by journal, term and number; lane and writer only break ties."""

    path: str
    journal: str
    day: str  # 2026-11-23, of the volume's making
    time: str  # 07-45-10
    term: int
    tag: str  # the writer's: 8 hex digits of its session
    lane: int
    number: int  # within (session, lane)

    @property
    def made_ns(self) -> int:
        """When it was made, to the second; 0 where its name says no time."""
        try:
            made = datetime.strptime(f"{self.day} {self.time}Z", "%Y-%m-%d %H-%M-%S%z")
        except ValueError:
            return 0
        return int(made.timestamp()) * NS_PER_S

    @property
    def order(self) -> tuple[str, int, int, int, str, str]:
        """What volumes sort by. The path comes last, so that two names are never equal by chance."""
        return self.journal, self.term, self.number, self.lane, self.tag, self.path

    def __lt__(self, other: VolumeName) -> bool:
        return self.order < other.order


def writer_tag(session: int) -> str:
    """The writer's part of a volume's name: the upper half of the session number, which is random."""
    return f"{session >> 32 & 0xFFFFFFFF:08x}"


def volume_path(header: VolumeHeader) -> str:
    """The path of the volume that begins with `header`. Every member keeps its copy under the same one."""
    made = datetime.fromtimestamp(header.created_ns // NS_PER_S, UTC)
    name = f"t{header.epoch.term:04d}-{writer_tag(header.session)}.l{header.lane}.v{header.number:06d}{VOLUME_SUFFIX}"
    return f"{volume_day(header.journal, header.created_ns)}/{made:%H-%M-%S}Z.{name}"


def volume_day(journal: str, utc_ns: int) -> str:
    """The folder of volumes that are made at `utc_ns`."""
    return f"{journal_dir(journal)}/{datetime.fromtimestamp(utc_ns // NS_PER_S, UTC):%Y-%m-%d}"


def parse_volume_path(path: str) -> VolumeName | None:
    """What `path` says about a volume, or None where it is not a volume's path."""
    parts = path.split("/")
    if len(parts) != 3 or not _is_journal(parts[0]) or _DAY.fullmatch(parts[1]) is None:
        return None
    found = _FILE.fullmatch(parts[2])
    if found is None:
        return None
    return VolumeName(
        path=path,
        journal=parts[0],
        day=parts[1],
        time=found["time"],
        term=int(found["term"]),
        tag=found["tag"],
        lane=int(found["lane"]),
        number=int(found["number"]),
    )


def is_day(name: str) -> bool:
    """Whether `name` (one part of a path) is the folder of a day's volumes."""
    return _DAY.fullmatch(name) is not None


def journal_dir(journal: str) -> str:
    """The folder of a journal. Raises ValueError for a name that cannot be one."""
    if not _is_journal(journal):
        raise ValueError(f"{journal!r} cannot be a folder's name: no '/', no NUL, no '.' in front, 1 to 100 bytes")
    return journal


def journal_file(journal: str) -> str:
    """The file that names the journal on a target."""
    return f"{journal_dir(journal)}/{JOURNAL_FILE}"


def epochs_dir(journal: str) -> str:
    """The folder of the claims of terms."""
    return f"{journal_dir(journal)}/{EPOCHS_DIR}"


def next_path(journal: str, unique: str) -> str:
    """Where a volume is prepared under a random name, before it is opened and linked to its own."""
    return f"{journal_dir(journal)}/{NEXT_DIR}/{unique}"


def trash_path(name: VolumeName, term: int) -> str:
    """Where a volume goes before it is unlinked; `term` is the pruning writer's. The day stays in the name, so that it can be put back."""
    return f"{name.journal}/{TRASH_DIR}/{term:04d}/{name.day}_{name.path.rsplit('/', 1)[1]}"


def untrash_path(path: str) -> VolumeName | None:
    """The volume that lies in the trash at `path`, under its own name; None where `path` is no such thing."""
    parts = path.split("/")
    if len(parts) != 4 or parts[1] != TRASH_DIR:
        return None
    day, _, file = parts[3].partition("_")
    return parse_volume_path(f"{parts[0]}/{day}/{file}")


def _is_journal(name: str) -> bool:
    # 100 bytes: Linux allows 255 per part of a path, other file systems less
    return 0 < len(name.encode("utf-8", "surrogatepass")) <= 100 and not name.startswith(".") and "/" not in name and "\0" not in name
