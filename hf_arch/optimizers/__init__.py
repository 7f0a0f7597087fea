"""Optimisers: how the parameters of a model become groups and are stepped. One idea a file, entered in `OPTIMIZERS`."""
