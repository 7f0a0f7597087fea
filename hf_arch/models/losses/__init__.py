"""Losses added to that of the next token in training; one idea a file."""
