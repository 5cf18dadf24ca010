"""Random ONNX graphs: what people put in front of and around the first convolutions, and onnxruntime as the judge."""
