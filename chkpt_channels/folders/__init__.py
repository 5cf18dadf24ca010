"""Model folders, shards, config.json and its kin."""
