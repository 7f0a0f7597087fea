"""What the records of runs say: statistics, comparison, audit, verdicts, scaling."""
