"""``make bench-kernels``: every native operation beside the limits of the machine."""
