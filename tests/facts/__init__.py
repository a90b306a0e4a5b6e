"""Facts of a graph: sizes, live bytes, and the workspace of kernels, held against measurements."""
