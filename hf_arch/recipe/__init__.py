"""Recipes: the schema, its parsing, and the configs that are built from it."""
