"""HTTP in front of the engine: the OpenAI-compatible API, the command line, the engine process seen from outside."""
