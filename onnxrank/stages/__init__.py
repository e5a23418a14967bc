"""What onnxrank does, a page each: inspect, collect, merge, analyze, plan, compress, compare."""
