"""Ingest in processes of its own: cameras are received there, and whole batches come over to the recorder."""
