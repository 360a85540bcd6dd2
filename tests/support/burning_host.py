"""`nvrstore record` in a host whose other threads want the interpreter's lock all the time: python burning_host.py nvr.toml THREADS

They begin with the first SIGUSR1 and end with the second.
"""

from __future__ import annotations

import signal
import sys
import threading
from itertools import count

from nvrstore.cli import main

_over = False


def burn() -> None:
    """Python and nothing else: the lock is given away only when somebody asks for it, and asked back at once."""
    for _ in count():
        if _over:
            return


def burn_or_end(_number: int, _frame: object) -> None:
    """The signal's handler."""
    global _over
    if threads:
        _over = True
        return
    for _ in range(int(sys.argv[2])):
        threads.append(threading.Thread(target=burn, daemon=True))
        threads[-1].start()


threads: list[threading.Thread] = []

if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, burn_or_end)
    sys.exit(main(["record", sys.argv[1], "--json"]))
