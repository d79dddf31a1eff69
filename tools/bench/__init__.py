"""The benchmark behind ``make bench``: Upwell, its peers and the machine's limits, measured in one run."""
