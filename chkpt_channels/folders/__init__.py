"""Models on disk: single files, model folders, shards, and configuration files."""
