"""Named architectures: a module each, holding a config with its defaults and its model classes."""

from ...deferred import require_auto_classes

require_auto_classes()
