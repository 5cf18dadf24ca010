"""A pickle of arrays made a little wrong: its opcodes, as in other pickles."""

from __future__ import annotations

from tests.support.mutations.pickles import mutate

__all__ = ["mutate"]
