"""Everything that runs a model in onnxruntime or reads data."""
