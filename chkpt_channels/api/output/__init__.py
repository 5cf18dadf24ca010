"""Outputs: their names, the check before they are published, and publishing."""
