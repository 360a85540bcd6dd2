"""The worker: a child process that carries out file operations on one target, so that a call that hangs hangs nobody else.

    parent --SOCK_SEQPACKET: requests--> worker --SOCK_SEQPACKET: answers--> parent
           <---- shared memory: stamps (age of the running call, counters, what the file system refused) ----
           ----- shared memory: the pool of batches (appender, read-only), or eight slots of 1 MiB (keeper) ---->

Run by file path as `python -I -S main.py KIND ROOT GUARD PARENT_PID`, with descriptors 3 socket, 4 stamps, 5 memory and
perhaps 6, a lock to hold as long as this lives. Standard library only, and little of that: it starts in a few hundredths
of a second. It knows no format: paths, offsets, bytes.

This file only finds its siblings, without importing the library around them. `serve.work` also runs inside a thread.
"""

if __name__ == "__main__":
    import os
    import sys

    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    __import__("worker.serve")
    sys.modules["worker.serve"].main()
