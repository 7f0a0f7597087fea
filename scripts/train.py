"""`hf-arch train`, for launchers that want a file: every process runs it with the same arguments.

accelerate launch scripts/train.py recipes/quickstart/quickstart.yaml --run llama --output-dir runs/llama
torchrun --nproc_per_node 2 scripts/train.py RECIPE [key=value ...] [--output-dir D] [--resume] [--extend-to STEPS]
"""

import sys

from hf_arch.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
