"""Breaks things on purpose and times the answer."""
