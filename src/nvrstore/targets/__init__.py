"""Places that keep volumes, behind one contract; whatever touches them lives in a worker process."""
