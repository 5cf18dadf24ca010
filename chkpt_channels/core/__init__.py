"""What everything stands on: errors, limits, dtypes, layouts. No input or output, and no import of this package."""
