"""Training the prepared runs of a set, here or as jobs of a cluster."""
