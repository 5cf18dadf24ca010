"""Conversions of trained networks that packages ship, judged by their runtimes on photographs: `make test-realworld`."""
