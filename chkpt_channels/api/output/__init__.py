"""Where a result goes: its name, how it gets there whole, and the check before that."""
