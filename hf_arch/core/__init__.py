"""What everything rests on: errors, registries, typed options, files, number formats. Imports nothing else of ours."""
