"""Residual streams: how sublayers read from and write to what flows through depth; one idea a file."""
