"""Parameters, FLOPs and state bytes from a config alone."""
