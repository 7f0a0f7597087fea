"""Functions of tensors only: for every recurrence a naive loop, a chunk-parallel form and a single step."""
