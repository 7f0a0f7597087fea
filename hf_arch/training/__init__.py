"""Training: from a recipe to a run folder, through transformers' Trainer."""
