"""lm_eval's own command line with our models: its registry learns of them by this one import.

    python -m hf_arch.lm_eval --model hf_arch --model_args pretrained=PATH --tasks hellaswag

lm_eval has no entry points for models, so something has to enter ours into its registry in the process that uses it:
`import hf_arch.lm_eval` does, before `lm_eval.simple_evaluate(model="hf_arch", ...)`. `hf-arch eval` needs neither.
"""

from __future__ import annotations

from hf_arch.evaluation.lm_eval import ArchLM

__all__ = ["ArchLM", "main"]


def main() -> None:
    """`lm_eval`, with `--model hf_arch`."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
