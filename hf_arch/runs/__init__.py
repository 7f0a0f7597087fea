"""What one run is and leaves: its record, its files, the model report, its provenance."""
