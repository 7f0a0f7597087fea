"""Norms, activations, positions and channel mixers."""

from ..deferred import require_auto_classes

require_auto_classes()
