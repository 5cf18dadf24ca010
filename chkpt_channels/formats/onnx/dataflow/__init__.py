"""What becomes of the image on its way through an ONNX graph."""
