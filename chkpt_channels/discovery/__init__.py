"""Which tensors see the image, and what stands around them."""
