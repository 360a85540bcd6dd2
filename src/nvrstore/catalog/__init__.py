"""What is stored, quickly: an SQLite index on the state disk, rebuildable at any time from the targets alone."""
