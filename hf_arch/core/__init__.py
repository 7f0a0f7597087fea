"""What everything rests on: errors, registries, typed options. Imports nothing else of this package."""
