"""Tokens seen for each parameter; about 20 is compute-optimal (Hoffmann et al. 2022, arXiv 2203.15556)."""

from hf_arch.core.registry import COLUMNS
from hf_arch.runs.columns import ReportColumn


@COLUMNS.register("idea_tokens_per_parameter")
class TokensPerParameter(ReportColumn):
    title, show = "tokens/param", ".2f"
    help = "training tokens for each parameter, embeddings included"

    def value(self, record):
        tokens, size = record.numbers.get("tokens_seen"), record.numbers.get("params_total")
        return None if tokens is None or not size else tokens / size
