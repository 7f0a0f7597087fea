"""Named architectures: a module each, holding a config with its defaults and its model classes."""
