"""What a run can learn: language modelling and synthetic probes, as tasks of one trainer (`base.py`)."""
