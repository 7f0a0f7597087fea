"""The audit's checks, one file for each thing that they look at."""
