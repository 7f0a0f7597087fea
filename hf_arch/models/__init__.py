"""The decoder, written once: configuration, block, heads, loss."""

from ..deferred import require_auto_classes

require_auto_classes()
