"""Records hundreds of RTSP cameras and does not lose footage when storage, a link, a process or a machine dies."""

__version__ = "0.1.0"
