"""One command for a GPU: models eager and compiled, workspace of kernels, copies, calibration."""
