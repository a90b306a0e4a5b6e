"""What kernels allocate beside their results, operator by operator and device by device."""
