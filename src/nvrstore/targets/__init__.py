"""Places that keep volumes, behind one contract: directories, memory, and wrappers that fail on demand.

Start reading at `contract.py`. `directory.py` is the real one; `memory.py` the model that tests and simulations use.
"""
