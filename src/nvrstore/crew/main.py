"""What an ingest worker runs, by file path: `python -I main.py PIPE_FD RING_FD POOL_FD`.

The first thing that it is told is where the recorder finds its modules: the same are found here, however it was started.
"""

import sys
from multiprocessing.connection import Connection


def main() -> None:
    pipe = Connection(int(sys.argv[1]))
    sys.path[:] = pipe.recv()
    from nvrstore.crew.inside import work

    work(pipe, int(sys.argv[2]), int(sys.argv[3]))


if __name__ == "__main__":
    main()
