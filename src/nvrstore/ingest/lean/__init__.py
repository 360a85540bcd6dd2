"""The lean engine: RTSP over TCP and UDP in plain Python, all cameras in one thread, a fifth of libav's cost.

    source.py       the Source contract; threads for what blocks          loop.py         one thread, its epolls, one buffer
    connection.py   one camera: socket, TLS, timers                       rtsp.py         what to say next (messages.py, auth.py, sdp.py)
    interleaved.py  frames and messages told apart                        tracks.py       which tracks, and who reads them
    hot.py          video packets to access units (h264.py, hevc.py)      video.py        access units to samples
    sound.py        sound packets to samples (aac.py, g711.py, opus.py)   rtp.py          sequence numbers, RTCP
    udp.py          a pair of sockets for each track                      jitter.py       datagrams in order again
    tls.py          certificates, and why they are refused

All but source.py, loop.py, connection.py, udp.py and tls.py are pure: bytes and values. What the engine does not speak (other codecs,
rtsps over UDP) it says while connecting.
"""

from nvrstore.ingest.lean.source import LeanEngine, LeanSource

__all__ = ["LeanEngine", "LeanSource"]
