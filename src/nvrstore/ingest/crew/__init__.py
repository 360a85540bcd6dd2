"""Ingest in processes of its own: cameras are received there, and only whole fragments come over to the recorder."""
