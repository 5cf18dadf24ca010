"""Pickles as trees of opcodes: nothing is run, and every opcode keeps its bytes."""
