"""Discovery: which tensors see the image, which layers precede them, and which take a constant after them."""
