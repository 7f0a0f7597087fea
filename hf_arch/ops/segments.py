"""Names that plugins import from here; the package itself takes them from the modules below."""

from __future__ import annotations

from .custom_op import manual_backward as closed_gradient
from .documents import document_keep as segment_keep
from .precision import state_dtype, without_autocast

__all__ = ["closed_gradient", "segment_keep", "state_dtype", "without_autocast"]
