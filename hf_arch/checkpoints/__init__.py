"""Model folders on disk, ours and those of other libraries: reading and loading."""
