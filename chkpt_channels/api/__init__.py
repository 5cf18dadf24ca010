"""The public functions, one module each, and the report that they return."""
