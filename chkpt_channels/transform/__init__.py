"""A checkpoint and options become edits: planning and pure arithmetic."""
