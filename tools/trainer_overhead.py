"""What ArchTrainer costs over a bare loop, and what bf16 autocast gives on this CPU.

python -m tools.trainer_overhead [--architecture llama] [--steps 30] [--rounds 5]

Same model, data, order, optimiser, clipping and schedule for a loop written by hand, ArchTrainer in fp32, and
ArchTrainer in bf16. They take turns in one process, and the CPU time of each is counted in blocks of `steps` steps (a
fifth of that in bf16): what else the machine does meanwhile affects all equally. What comes once in a run, however long
(building the trainer), is left out. One thread (OMP_NUM_THREADS=1) gives the steadiest numbers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    default_data_collator,
    get_cosine_schedule_with_warmup,
)

import hf_arch
from hf_arch.core.quiet import quiet_libraries
from hf_arch.data import SeededOrder
from hf_arch.training.arguments import build_arguments
from hf_arch.training.precision import Precision
from hf_arch.training.trainer import ArchTrainer, decay_parameter_names

LEARNING_RATE, BATCH, LENGTH, ROWS, VOCABULARY = 1e-3, 8, 128, 512, 1024


class Rows(Dataset):
    """Random tokens."""

    def __init__(self) -> None:
        self.tokens = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[row], "labels": self.tokens[row].clone()}


def bare_loop(model: PreTrainedModel, rows: Rows, order: SeededOrder, steps: int) -> Callable[[], float]:
    """A block of `steps` steps, written by hand; its CPU seconds a step."""
    decayed = set(decay_parameter_names(model))
    groups = [
        {"params": [p for name, p in model.named_parameters() if (name in decayed) == decays], "weight_decay": decay}
        for decays, decay in ((True, 0.1), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, 100 * steps)

    def block() -> float:
        start = time.process_time()
        model.train()
        for step in range(steps):
            batch = default_data_collator([rows[row] for row in order.indices(step, BATCH)])
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        return (time.process_time() - start) / steps

    return block


class Stopwatch(TrainerCallback):
    """CPU seconds between the beginning and the end of training."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        self.seconds = -time.process_time()

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        self.seconds += time.process_time()


def trainer_block(
    model: PreTrainedModel, rows: Rows, order: SeededOrder, steps: int, precision: str
) -> Callable[[], float]:
    """The same by ArchTrainer."""
    training: dict[str, Any] = {
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LEARNING_RATE,
    }
    flops_per_token = hf_arch.cost(model.config, LENGTH).flops_per_token_train
    training |= {"eval_strategy": "no", "save_strategy": "no", "logging_steps": 10, "use_cpu": True}

    def block() -> float:
        # Anew each time: it sets what accelerate computes in, for the whole process.
        args = build_arguments(training, Precision(precision, "a benchmark"), Path("unused"), ROWS)
        trainer = ArchTrainer(
            model=model,
            args=args,
            order=order,
            train_dataset=rows,
            data_collator=default_data_collator,
            flops_per_token=flops_per_token,
        )
        trainer.remove_callback(PrinterCallback)
        stopwatch = Stopwatch()
        trainer.add_callback(stopwatch)
        trainer.train()
        return stopwatch.seconds / steps

    return block


def measure(architecture: str, steps: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds a step in each block, [rounds] for each of loop, fp32 and bf16; a first round warms up."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 128, "num_hidden_layers": 2, "max_position_embeddings": LENGTH}
    config = hf_arch.tiny_config(architecture, **sizes)
    rows, order = Rows(), SeededOrder(ROWS, seed=0)
    with quiet_libraries():
        models = [AutoModelForCausalLM.from_config(config) for _ in range(3)]
        blocks = {
            "loop": bare_loop(models[0], rows, order, steps),
            "fp32": trainer_block(models[1], rows, order, steps, "fp32"),
            "bf16": trainer_block(models[2], rows, order, max(1, steps // 5), "bf16"),
        }
        times: dict[str, list[float]] = {name: [] for name in blocks}
        for round_number in range(rounds + 1):
            for name, block in blocks.items():
                taken = block()
                if round_number:
                    times[name].append(taken)
    return times


def ratios(over: list[float], under: list[float]) -> str:
    """Median, least and greatest of the ratios of two lists of times, round by round."""
    found = [top / bottom for top, bottom in zip(over, under, strict=True)]
    return f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architecture", default="llama")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    times = measure(options.architecture, options.steps, options.rounds)
    for name, taken in times.items():
        print(f"{name}: {1000 * statistics.median(taken):.1f} ms of CPU time a step")
    print(f"time of ArchTrainer over that of the loop: {ratios(times['fp32'], times['loop'])}")
    print(f"speed of bf16 autocast over that of fp32: {ratios(times['fp32'], times['bf16'])}")


if __name__ == "__main__":
    main()
