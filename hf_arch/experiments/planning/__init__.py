"""From a recipe to the prepared runs of a set."""
