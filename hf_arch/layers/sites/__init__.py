"""Small modules at named places of a block; one idea a file."""
