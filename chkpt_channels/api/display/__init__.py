"""What people see of results beside text and JSON: words, a notebook's tables, pictures of kernels."""
