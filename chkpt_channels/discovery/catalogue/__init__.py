"""Known architectures: which tensors see the image, what builds the network, and which images it was trained with."""
