"""Speed of layers and models on a GPU: every mixer, training with and without compile, decoding, lengths, losses."""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import hf_arch
from hf_arch.core.registry import MIXERS
from hf_arch.evaluation.speed import measure_inference
from hf_arch.ops.delta_rule import delta_rule
from hf_arch.training.peak_flops import peak_flops
from tools.gpu_timing import Bench, Row, attempt, backend_of

ROOT = Path(__file__).parents[1]
MODELS = {"llama-124m": (32, 1024), "gla-340m": (16, 2048)}
"""Recipes of recipes/pretrain, with the rows and tokens of a step."""
LOSS_STEPS, LOSS_TAIL = 200, 20
LOSS_TOLERANCE = 0.05
"""Of the loss in fp32, that bf16 may end away from it."""


def machine(bench: Bench) -> Iterator[Row]:
    """The two ceilings: a large copy (bytes read and written) and a large bf16 product, on random data."""
    size = 256 if bench.small else 8192
    left, right = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    spent = bench.milliseconds(lambda: left @ right)
    yield {"what": "bf16 matrix product", "size": size, "tflops": round(2 * size**3 / spent / 1e9, 1)}
    source = torch.randn(1 << (16 if bench.small else 29), device=bench.device)
    target = torch.empty_like(source)
    spent = bench.milliseconds(lambda: target.copy_(source))
    yield {"what": "copy", "gigabytes_per_second": round(2 * source.numel() * 4 / spent / 1e6)}


def block_config(name: str, small: bool) -> Any:
    """One block of this mixer, 16 heads of 128 where the mixer lets one choose, and next to nothing around it."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2} if small else {"hidden_size": 2048, "num_attention_heads": 16}
    return hf_arch.config_from_dict(
        {"architecture": "mixed", "mixer": [name], "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 128}
        | sizes
    )


def mixers(bench: Bench) -> Iterator[Row]:
    """Forward and backward of one block of each mixer, 4 rows of 2048 tokens, bf16 autocast, as `auto` dispatches."""
    rows, length = (2, 32) if bench.small else (4, 2048)
    for name in sorted(MIXERS):
        yield attempt({"mixer": name, "shape": [rows, length]}, lambda: _block(bench, name, rows, length), bench)  # noqa: B023


def warm_up(bench: Bench, name: str) -> None:
    """Compile and tune the kernels of one mixer."""
    _block(bench, name, 2, 1024)


def _block(bench: Bench, name: str, rows: int, length: int) -> Row:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(block_config(name, bench.small)).to(bench.device)
    ids = torch.randint(3, 128, (rows, length), device=bench.device)

    def step() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        model.zero_grad()

    spent = bench.milliseconds(step)
    return {
        "milliseconds": round(spent, 2),
        "tokens_per_second": round(1e3 * rows * length / spent),
        "peak_bytes": bench.peak_memory(step),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def recipe_config(name: str, small: bool) -> Any:
    """The config of a pretraining recipe, or of its `cpu` scale."""
    recipe = yaml.safe_load((ROOT / "recipes/pretrain" / f"{name}.yaml").read_text())
    changes = recipe["experiment"]["scale"]["cpu"]["model"] if small else {}
    return hf_arch.config_from_dict(recipe["model"] | changes)


def training(bench: Bench) -> Iterator[Row]:
    """Whole training steps (bf16 autocast, fused AdamW) of two models, eager and compiled."""
    for compiled in (False, True):
        for name, (rows, length) in MODELS.items():
            size = (2, 64) if bench.small else (rows, length)
            row: Row = {"model": name, "shape": list(size), "compile": compiled}
            yield attempt(row, lambda: _training(bench, name, *size, compiled), bench)  # noqa: B023


def _training(bench: Bench, name: str, rows: int, length: int, compiled: bool) -> Row:
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = recipe_config(name, bench.small)
    model = AutoModelForCausalLM.from_config(config).to(bench.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    backend = "aot_eager" if bench.small else "inductor"
    run = torch.compile(model, backend=backend) if compiled else model
    ids = torch.randint(3, config.vocab_size, (rows, length), device=bench.device)

    def step() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = run(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    start = time.perf_counter()
    step()
    bench.synchronize()
    first = time.perf_counter() - start
    spent = bench.milliseconds(step, seconds=2.0, most=10)
    peak, cost = peak_flops(bench.device, torch.bfloat16), hf_arch.cost(config, length)
    speed = 1e3 * rows * length / spent
    return {
        "parameters": cost.params_total,
        "milliseconds": round(spent, 2),
        "tokens_per_second": round(speed),
        "mfu": None if peak is None else round(speed * cost.flops_per_token_train / peak, 4),
        "first_step_seconds": round(first, 1),
        "peak_bytes": bench.peak_memory(step),
    }


def crossover(bench: Bench) -> Iterator[Row]:
    """Softmax attention and the gated delta rule over lengths, as many tokens in all: forward and backward, bf16."""
    heads, width, tokens = (2, 16, 128) if bench.small else (16, 128, 32768)
    length = 32 if bench.small else 512
    while length <= tokens:
        shape = (tokens // length, length, heads)
        row: Row = {"shape": list(shape)}
        yield attempt(row, lambda: _both(bench, shape, width), bench)  # noqa: B023
        length *= 2


def _both(bench: Bench, shape: tuple[int, ...], width: int) -> Row:
    torch.manual_seed(0)
    arrays = [torch.randn(*shape, width, device=bench.device, dtype=torch.bfloat16) for _ in range(4)]
    q, v, grad = arrays[0].requires_grad_(), arrays[2].requires_grad_(), arrays[3]
    k = F.normalize(arrays[1], dim=-1).requires_grad_()
    beta = torch.rand(shape, device=bench.device).requires_grad_()
    g = F.logsigmoid(3 + torch.randn(shape, device=bench.device)).requires_grad_()

    def attend() -> None:
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        out.backward(grad.transpose(1, 2))

    def recur() -> None:
        delta_rule(q, k, v, beta, g)[0].backward(grad)

    spent = bench.milliseconds(attend), bench.milliseconds(recur)
    return {"attention_milliseconds": round(spent[0], 3), "gated_delta_milliseconds": round(spent[1], 3)}


def losses(bench: Bench) -> Iterator[Row]:
    """The same 200 steps in fp32 and under bf16 autocast, on bytes of Python's own sources."""
    steps = 4 if bench.small else LOSS_STEPS
    data = _source_bytes(bench)
    for name in ("llama", "gla", "gated_delta_net"):
        row: Row = {"model": name, "steps": steps}
        yield attempt(row, lambda: _two_precisions(bench, name, data, steps), bench)  # noqa: B023


def _source_bytes(bench: Bench) -> Tensor:
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("[a-z]*.py")))[: 1 << 21]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long().to(bench.device)


def _two_precisions(bench: Bench, name: str, data: Tensor, steps: int) -> Row:
    curves = {precision: _curve(bench, name, data, steps, precision) for precision in ("fp32", "bf16")}
    tails = {precision: curve[-LOSS_TAIL:].mean().item() for precision, curve in curves.items()}
    apart = (curves["fp32"] - curves["bf16"]).abs()
    if abs(tails["fp32"] - tails["bf16"]) > LOSS_TOLERANCE * tails["fp32"]:
        raise ArithmeticError(f"ends at {tails['fp32']:.4f} in fp32 and {tails['bf16']:.4f} in bf16")
    return {
        "fp32": round(tails["fp32"], 4),
        "bf16": round(tails["bf16"], 4),
        "difference_of_the_ends": round(abs(tails["fp32"] - tails["bf16"]), 4),
        "largest_difference_of_a_step": round(apart.max().item(), 4),
        "first_loss": round(curves["fp32"][0].item(), 4),
    }


def _curve(bench: Bench, name: str, data: Tensor, steps: int, precision: str) -> Tensor:
    width, rows, length = (32, 2, 32) if bench.small else (256, 16, 256)
    torch.manual_seed(0)
    config = hf_arch.config_from_dict(
        {
            "architecture": name,
            "hidden_size": width,
            "num_hidden_layers": 4,
            "num_attention_heads": 2 if bench.small else 4,
            "vocab_size": 256,
        }
    )
    model = AutoModelForCausalLM.from_config(config).to(bench.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(steps):
        starts = torch.randint(len(data) - length, (rows,), generator=draw).to(bench.device)
        ids = data[starts[:, None] + torch.arange(length, device=bench.device)]
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.append(loss.detach().float())
    return torch.stack(found).cpu()


def decoding(bench: Bench) -> Iterator[Row]:
    """`generate` at batch size 1 in bf16, by length of context; llama of transformers with the same sizes beside it."""
    contexts, tokens = ((8,), 3) if bench.small else ((128, 2048), 24)
    configs = {name: recipe_config(name, bench.small) for name in MODELS}
    makers: dict[str, Callable[[], Any]] = {
        name: partial(AutoModelForCausalLM.from_config, config) for name, config in configs.items()
    }
    makers["llama-124m of transformers"] = partial(LlamaForCausalLM, _their_llama(configs["llama-124m"]))
    for name, make in makers.items():
        for context in contexts:
            row: Row = {"model": name, "context": context}
            yield attempt(row, lambda: _decoding(bench, make, context, tokens), bench)  # noqa: B023


def _their_llama(config: Any) -> LlamaConfig:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: getattr(config, name) for name in names}
    return LlamaConfig(**sizes, tie_word_embeddings=True, max_position_embeddings=4096)


def _decoding(bench: Bench, make: Callable[[], Any], context: int, tokens: int) -> Row:
    torch.manual_seed(0)
    model = make().to(bench.device, torch.bfloat16).eval()
    prompt = torch.randint(3, model.config.vocab_size, (1, context))
    with backend_of("auto"):
        speed = measure_inference(model, prompt, tokens=tokens, repeats=1 if bench.small else 2)
    return {"prefill_tokens_per_second": round(speed.prefill), "decode_tokens_per_second": round(speed.decode, 1)}
