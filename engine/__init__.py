"""The engine: scheduling, paged cache, models, sampling. Plain synchronous Python and NumPy; knows no HTTP."""
