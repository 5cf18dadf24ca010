"""The real frameworks as oracles, in an environment of their own."""
