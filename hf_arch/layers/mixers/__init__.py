"""Token mixers: one file, one idea."""
