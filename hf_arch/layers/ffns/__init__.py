"""Channel mixers, one idea a file."""
