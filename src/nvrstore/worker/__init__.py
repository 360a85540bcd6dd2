"""The child program that touches targets, so that no call that hangs can hang anybody else. See `main.py`."""
