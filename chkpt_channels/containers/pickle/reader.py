"""A pickle as a tree of nodes that know which bytes encode them. Nothing is executed and no name is resolved.

`opcodes` run on the `machine` and make the `nodes`; `editor` changes what was found.
"""

from __future__ import annotations

from chkpt_channels.containers.pickle.machine import FRAME_HEAD_BYTES, Machine, OutOfData, PickleBytes, SkippingMachine
from chkpt_channels.containers.pickle.nodes import Kind, PickleNode, plain
from chkpt_channels.containers.pickle.opcodes import run
from chkpt_channels.containers.pickle.window import FileBytes
from chkpt_channels.core.errors import Location
from chkpt_channels.core.gc_pause import gc_paused

__all__ = ["Kind", "OutOfData", "PickleNode", "Tree", "plain"]

PROTOCOL = b"\x80"
"""The opcode that a pickle of protocol 2 to 5 begins with."""


class Tree:
    """One parsed pickle: bytes [start, stop) of `data`; where that is a FileBytes, long texts and byte strings are skipped."""

    def __init__(self, data: PickleBytes, location: Location, *, start: int = 0) -> None:
        """Parse. Raises DamagedError with the opcode's offset, UnsupportedError for protocol 0, OutOfData if cut off."""
        self.data, self.location, self.start = data, location, start
        machine = SkippingMachine(data, location, start) if isinstance(data, FileBytes) else Machine(data, location, start)
        with gc_paused():
            self.root = run(machine)
        self.stop = machine.at
        for at, length in machine.frames[-1:]:
            if at + FRAME_HEAD_BYTES + length > self.stop:
                raise machine.damaged("a FRAME extends beyond the pickle", at)
        self.starts, self.longs = machine.starts, machine.longs
        self.persids, self.globals = machine.persids, machine.globals
        self.frames, self.pair_stops = machine.frames, machine.pair_stops
        self.memoize_opcodes, self.memoized = machine.memoize_opcodes, machine.memoized

    @classmethod
    def whole(cls, data: PickleBytes, location: Location) -> Tree:
        """The one pickle that fills `data`. Raises DamagedError where it is cut off or bytes follow it, UnsupportedError where
        these are another pickle: Python reads them one by one."""
        try:
            tree = cls(data, location)
        except OutOfData:
            raise location.damaged("the pickle is cut off", at=len(data)) from None
        if bytes(data[tree.stop : tree.stop + 1]) == PROTOCOL:
            hint = "pickle.dump each object to a file of its own"
            raise location.unsupported(f"holds a second pickle behind the first, at byte {tree.stop}", hint=hint)
        if tree.stop != len(data):
            raise location.damaged("bytes follow the end of the pickle", at=tree.stop)
        return tree

    def elsewhere(self, location: Location) -> Tree:
        """The same pickle in another file. Nodes are not changed once they are parsed."""
        tree = object.__new__(Tree)
        tree.__dict__.update(self.__dict__, location=location)
        return tree
