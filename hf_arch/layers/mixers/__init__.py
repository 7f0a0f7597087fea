"""Token mixers: one file, one idea."""

from ...deferred import require_auto_classes

require_auto_classes()
