"""Records hundreds of RTSP cameras and does not lose footage when storage, a link, a process or a machine dies.

    async with nvrstore.Recorder(nvrstore.Config.load("nvr.toml")) as recorder: ...      records
    async with nvrstore.Archive(config) as archive: ...                                 reads what is stored

Everything public is here; modules below are the rooms it is made of.
"""

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
