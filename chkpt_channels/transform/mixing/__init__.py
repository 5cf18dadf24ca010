"""The mixing of input channels: its matrix, the rules that build it, and the normalizations that are folded in."""
