"""The benchmark of the way from sample to target checks its result before it times it; the check is run here."""

from __future__ import annotations

from benchmarks.bench_hot_loop import verify


def test_the_hot_loop_records_what_it_was_given() -> None:
    """Fragmenter, batch, pool, target: three streams come back byte for byte, every checksum right."""
    verify()
