"""A comparison made visible: page, figures, tables, files."""
