"""Experiments: recipes, plans, matched runs, and what is made of their results."""
