"""Which layers run how often; one idea a file."""
