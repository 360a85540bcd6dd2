"""Simulated cameras over real RTSP, and the check of what arrived.

    Farm --RTSP--> your recorder --> access units --> check_access_units --> FrameReport.lost(farm.sent(i)) == ()

Every access unit carries a stamp (stream, frame number, time, checksum of its slices) in an SEI message, so that the archive alone
tells which frames are there, intact, once. Use it to test your own system: `nvrstore farm --streams 8`, or `Farm` in process.
"""

from nvrstore.farm.auth import Auth
from nvrstore.farm.check import FrameReport, check_access_units, is_intact, parse_sei
from nvrstore.farm.farm import Farm, FarmConfig
from nvrstore.farm.nal import Codec
from nvrstore.farm.oddities import Act, Reports, Traits
from nvrstore.farm.ranges import FrameRange, SentFrames
from nvrstore.farm.script import Script, load_script, parse_act, parse_script
from nvrstore.farm.stamp import FrameStamp

__all__ = [
    "Act",
    "Auth",
    "Codec",
    "Farm",
    "FarmConfig",
    "FrameRange",
    "FrameReport",
    "FrameStamp",
    "Reports",
    "Script",
    "SentFrames",
    "Traits",
    "check_access_units",
    "is_intact",
    "load_script",
    "parse_act",
    "parse_script",
    "parse_sei",
]
