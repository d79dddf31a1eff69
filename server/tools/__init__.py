"""Tool calls: what a model writes for one, read as it comes, for each family of models."""
