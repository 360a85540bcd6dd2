"""Writing: batches to every member of the set, commits, changes of set, refuge, recovery, resync."""
