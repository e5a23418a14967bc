"""Numerical core: numpy and scipy only, no ONNX, no files."""
