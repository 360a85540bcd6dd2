"""Takes back what a test configured in the library's logger."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logger_restored() -> Iterator[None]:
    """Level, handlers and propagation of the `nvrstore` logger are afterwards as they were."""
    logger = logging.getLogger("nvrstore")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers
