"""Channels come from somewhere: which kernels see the image, from the names and shapes of tensors alone."""
