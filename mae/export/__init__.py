"""The encoder as others use it: an ONNX file that was checked against torch, and what runs it."""
