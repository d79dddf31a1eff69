"""The operations in NumPy: the definition."""
