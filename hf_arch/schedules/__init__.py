"""Learning-rate schedules: what `training.lr_scheduler_type` names, transformers' own and those of plugins."""
