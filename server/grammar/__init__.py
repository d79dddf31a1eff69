"""What an answer may be held to: JSON, a schema, a choice, a pattern, a grammar; checked, tried and written down."""
