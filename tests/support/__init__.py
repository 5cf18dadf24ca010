"""What several test files need, and what runs by hand."""
