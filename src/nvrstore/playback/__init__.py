"""Reading: fragments from the best healthy copy, spans, coverage, export."""
