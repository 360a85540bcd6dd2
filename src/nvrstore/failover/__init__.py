"""Decides who holds a journal: detector, state machine, terms. Pure: no input, no output, `now` is an argument."""
