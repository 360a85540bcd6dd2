"""How many cameras this machine records to these targets without loss: search, measure, verify, size."""
