"""Records hundreds of RTSP cameras and does not lose footage when storage, a link, a process or a machine dies.

    async with nvrstore.Recorder(nvrstore.Config.load("nvr.toml")) as recorder: ...      records
    async with nvrstore.Archive(config) as archive: ...                                 reads what is stored

Everything public is here, and imported when it is first asked for: `nvrstore --version` need not load libav.
Modules below are the rooms it is made of.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvrstore.archive import Archive
    from nvrstore.blocking import blocking, blocking_archive
    from nvrstore.catalog.coverage import Coverage, Hole, HoleReason
    from nvrstore.config import Config, JournalConfig, KeepConfig, RecorderConfig, StreamConfig, StreamDefaults, TargetConfig
    from nvrstore.model import Cause, Commit, Epoch, Fragment, Gap, Mark, Media, Sample
    from nvrstore.playback.export import ExportReport
    from nvrstore.playback.reader import StoredFragment
    from nvrstore.playback.verify import VerifyReport
    from nvrstore.recorder.facade import Recorder, Stream

__version__ = "0.1.0"

__all__ = [
    "Archive",
    "Cause",
    "Commit",
    "Config",
    "Coverage",
    "Epoch",
    "ExportReport",
    "Fragment",
    "Gap",
    "Hole",
    "HoleReason",
    "JournalConfig",
    "KeepConfig",
    "Mark",
    "Media",
    "Recorder",
    "RecorderConfig",
    "Sample",
    "StoredFragment",
    "Stream",
    "StreamConfig",
    "StreamDefaults",
    "TargetConfig",
    "VerifyReport",
    "__version__",
    "blocking",
    "blocking_archive",
]

_WHERE = {
    "Archive": "nvrstore.archive",
    "Cause": "nvrstore.model",
    "Commit": "nvrstore.model",
    "Config": "nvrstore.config",
    "Coverage": "nvrstore.catalog.coverage",
    "Epoch": "nvrstore.model",
    "ExportReport": "nvrstore.playback.export",
    "Fragment": "nvrstore.model",
    "Gap": "nvrstore.model",
    "Hole": "nvrstore.catalog.coverage",
    "HoleReason": "nvrstore.catalog.coverage",
    "JournalConfig": "nvrstore.config",
    "KeepConfig": "nvrstore.config",
    "Mark": "nvrstore.model",
    "Media": "nvrstore.model",
    "Recorder": "nvrstore.recorder.facade",
    "RecorderConfig": "nvrstore.config",
    "Sample": "nvrstore.model",
    "StoredFragment": "nvrstore.playback.reader",
    "Stream": "nvrstore.recorder.facade",
    "StreamConfig": "nvrstore.config",
    "StreamDefaults": "nvrstore.config",
    "TargetConfig": "nvrstore.config",
    "VerifyReport": "nvrstore.playback.verify",
    "blocking": "nvrstore.blocking",
    "blocking_archive": "nvrstore.blocking",
}


def __getattr__(name: str) -> Any:
    """PEP 562: the first use of a public name imports its module."""
    try:
        module = _WHERE[name]
    except KeyError:
        raise AttributeError(f"module 'nvrstore' has no attribute {name!r}") from None
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
