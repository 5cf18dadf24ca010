"""The public functions, one module each, and the reports that they return."""
