"""Where bytes are: sources, splices, copies, outputs that appear whole, and an isolated worker."""
