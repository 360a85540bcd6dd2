"""The recorder: builds all rooms from a configuration, owns their threads, and closes them in order.

state.py     the state directory: lock, identity, terms, what is known of targets
bus.py       events to any number of bounded listeners
durable.py   who waits for what to become durable
observer.py  what the engine reports, handed on to catalog, bus, waiters and upkeep
core.py      composition: synchronous, in threads of its own
facade.py    `Recorder` and `Stream` for asyncio and trio
"""
