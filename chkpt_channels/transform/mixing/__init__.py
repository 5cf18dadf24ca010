"""The mixing of input channels: its matrix, the rules that make it, and normalizations on both sides."""
