"""PyTorch: zip archives, TorchScript, and the format before 1.6."""
