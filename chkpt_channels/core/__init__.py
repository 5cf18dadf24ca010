"""The base layer: errors, limits, dtypes, layouts, records. It does no input or output and imports no other layer."""
