"""The decoder, written once: configuration, block, heads, loss."""
