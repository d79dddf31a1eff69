"""Model files: readers, checkpoints, and the store they are fetched into."""
