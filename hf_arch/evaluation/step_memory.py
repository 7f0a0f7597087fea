"""What one training step holds in memory, by part, without taking any: the step runs on fake tensors.

Every operation of forward and backward is carried out on shapes alone, so the count is of the code that trains: what
autograd keeps for each mixer, copies that autocast makes, chunks of logits. Only memory that a kernel takes inside
itself is not seen. Parts: `weights`, `gradients`, `optimizer`, `logits and loss`, `embeddings, norms, residuals`,
`ffn`, `mixer <name>` and `backward` (what the backward pass holds at the peak and is none of them).
A deep model whose layers repeat is counted at two depths, and each part continued in a straight line.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedConfig

from hf_arch.core.errors import ConfigError
from hf_arch.evaluation.fake_tensors import (
    GROUPED_PRODUCT,
    READ_DEVICE,
    READ_SCALAR,
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    TorchDispatchMode,
    grouped_product,
    inside_custom_op,
    tree_flatten,
    tree_leaves,
    tree_unflatten,
    untraced,
    written,
)
from hf_arch.evaluation.known_results import KnownResults
from hf_arch.ops.native import on_shapes

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
LOGITS, REST, BACKWARD = "logits and loss", "embeddings, norms, residuals", "backward"
FULL_DEPTHS = 4
"""Up to so many repetitions of its layers a model is counted whole."""
STEPS_LOOKED_AT = 512
"""Up to this length, what our own operators take while they step through time is counted too; it does not grow with
the length, and is little of a long row."""
MOMENTS = 2
"""States of AdamW for each weight, in fp32."""


def step_memory(
    config: PreTrainedConfig,
    batch: int,
    seq_len: int,
    precision: str = "fp32",
    checkpointing: bool = False,
    device: str = "cpu",
) -> dict[str, int]:
    """Bytes of each part at the moment when a step of `batch` rows of `seq_len` tokens holds most.

    precision: fp32, or bf16 for autocast over fp32 weights. checkpointing: activations of a block are recomputed.
    device: the kind on which it runs; on a CPU this machine's C kernels, which take less than torch's forms.

    Raises:
        ConfigError: what the model keeps depends on the values of its input, such as which expert a token goes to.
    """
    step = _Step(batch, seq_len, precision, checkpointing, device)
    period = _period(config)
    if period is None or config.num_hidden_layers <= FULL_DEPTHS * period:
        return _whole(config, step)
    depths = (2 * period, FULL_DEPTHS * period)
    low, high = (_whole(_with_depth(config, depth), step) for depth in depths)
    steps = (config.num_hidden_layers - depths[1]) / (depths[1] - depths[0])
    parts = high | low
    return {part: round(high.get(part, 0) + steps * (high.get(part, 0) - low.get(part, 0))) for part in parts}


@dataclass
class _Step:
    """The arguments of `step_memory`, and what calls of our own operators took, by what they were given."""

    batch: int
    seq_len: int
    precision: str
    checkpointing: bool
    device: str
    calls: dict[Any, _Call] = field(default_factory=dict)


@dataclass
class _Call:
    """Bytes that a call of an operator holds at most, results included; of each result, which fills a storage of its
    own, the arguments that make one like it; and how the results stand together."""

    most: int
    results: list[dict[str, Any]]
    tree: Any


def _period(config: Any) -> int | None:
    """After how many layers they repeat; None where a layer's memory depends on its place."""
    stream, _ = config.stream_spec
    lengths = [len(value) if isinstance(value, list) else 1 for value in (config.mixer, config.ffn)]
    period = math.lcm(*lengths)
    if (stream.label or "add") not in ("add", "parallel") or config.num_hidden_layers % period:
        return None
    return period


def _with_depth(config: Any, layers: int) -> Any:
    shallow = copy.deepcopy(config)
    shallow.num_hidden_layers = layers
    return shallow


def _whole(config: Any, step: _Step) -> dict[str, int]:
    """The count of every layer. First values play no part, and a policy of a plugin may look at them."""
    config = copy.deepcopy(config)
    config.init = None
    kernels = on_shapes() if step.device == "cpu" else nullcontext()
    with FakeTensorMode() as mode, torch.random.fork_rng(devices=[]), kernels:
        live = _LiveBytes(mode, step.calls if step.seq_len <= STEPS_LOOKED_AT else None)
        with live:
            live.label = WEIGHTS
            model = AutoModelForCausalLM.from_config(config).train()
            if step.checkpointing:
                model.activation_checkpointing_enable({"use_reentrant": False})
            live.label = OPTIMIZER
            moments = [torch.zeros_like(p) for p in model.parameters() if p.requires_grad for _ in range(MOMENTS)]
            _follow(model, live)
            live.label = LOGITS
            live.restart()
            ids = torch.zeros(step.batch, step.seq_len, dtype=torch.long)
            autocast = torch.autocast("cpu", dtype=torch.bfloat16) if step.precision == "bf16" else nullcontext()
            try:
                with autocast, _NoAddresses(live):
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                live.label = BACKWARD
                loss.backward()
            except (DataDependentOutputException, DynamicOutputShapeException):
                raise ConfigError(
                    f"model: the memory of {live.label!r} depends on its input's values, which shapes do not tell"
                ) from None
            assert len(moments)
        return {part: size for part, size in live.peak.items() if size}


class _NoAddresses(TorchFunctionMode):
    """Refuses whoever asks where a tensor lies, as transformers' experts do with torch before 2.11."""

    def __init__(self, live: _LiveBytes) -> None:
        super().__init__()
        self.live = live

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError:
            if func is not torch.Tensor.data_ptr:
                raise
        raise ConfigError(
            f"model: the memory of {self.live.label!r} depends on where its tensors lie, which shapes do not tell"
        )


@untraced
class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, each under the label that held when it was made."""

    def __init__(self, mode: FakeTensorMode, calls: dict[Any, _Call] | None) -> None:
        """mode: in which the tensors are. calls: what our own operators took is looked up and entered here; None where
        it is not counted."""
        super().__init__()
        self.mode, self.known = mode, KnownResults(mode)
        self.label = WEIGHTS
        self.calls = calls
        self.total = self._highest = 0
        self.held: Counter[str] = Counter()
        self.peak: dict[str, int] = {}
        self._most = 0
        self._entries: dict[int, list[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is READ_DEVICE and not self.mode.in_kernel_invocation:
            return args[0].fake_device
        if func is torch.ops.aten.equal.default and self.label == WEIGHTS:
            return True  # which rule draws a weight: its bytes are the same
        if func is READ_SCALAR and self.label in (REST, LOGITS):
            return 0  # an end of the positions, or whether a label is wrong: compared with what is allowed, and no more
        if (same := written(func, args, kwargs or {})) is not None:
            return same  # and no bytes: on shapes there is nothing to compute
        inside = inside_custom_op(func) if self.calls is not None else None
        if func is GROUPED_PRODUCT:
            result = grouped_product(*args)
        elif inside is None:
            result = self.known.of(func, args, kwargs or {})
        else:
            result = self._walk(inside, args, kwargs or {})
        for leaf in (result,) if isinstance(result, torch.Tensor) else tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _walk(self, inside: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The results of an operator of ours, and what it holds on its way: as before where a call was given the
        same."""
        assert self.calls is not None
        leaves, _ = tree_flatten((args, kwargs))
        key = (inside, torch.is_autocast_enabled("cpu"), *map(_described, leaves))
        before, highest = self.total, self._highest
        known = self.calls.get(key)
        if known is not None:
            self._look(known.most)
            return tree_unflatten([torch.empty_strided(**like) for like in known.results], known.tree)
        self._highest = before
        with self:
            result = inside(*args, **kwargs)
        most, self._highest = self._highest - before, max(highest, self._highest)
        results, tree = tree_flatten(result)
        if self.total - before == sum(x.numel() * x.element_size() for x in results):
            likes = [{"size": x.shape, "stride": x.stride(), "dtype": x.dtype, "device": x.device} for x in results]
            self.calls[key] = _Call(most, likes, tree)
        return result

    def restart(self) -> None:
        """Forgets the peak so far."""
        self._most, self.peak = 0, {}
        self._look()

    def relabel(self, tensor: torch.Tensor, label: str) -> None:
        """Counts the storage of `tensor` under another label from now on."""
        entry = self._entries.get(id(tensor.untyped_storage()))
        if entry is not None and entry[0] != label:
            self.held[entry[0]] -= entry[1]
            self.held[label] += entry[1]
            entry[0] = label

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._entries:
            return
        entry = self._entries[key] = [self.label, storage.nbytes()]
        self.held[self.label] += entry[1]
        self.total += entry[1]
        weakref.finalize(storage, self._free, key).atexit = False
        self._look()

    def _free(self, key: int) -> None:
        label, size = self._entries.pop(key)
        self.held[label] -= size
        self.total -= size

    def _look(self, more: int = 0) -> None:
        """Whether what is held, and `more` under the label of now, is the most so far."""
        total = self.total + more
        self._highest = max(self._highest, total)
        if total > self._most:
            self._most, self.peak = total, dict(self.held)
            self.peak[self.label] = self.peak.get(self.label, 0) + more


def _described(x: Any) -> Any:
    """What of an argument decides what an operator allocates."""
    return (x.shape, x.stride(), x.dtype, x.device) if isinstance(x, torch.Tensor) else x


def _follow(model: Any, live: _LiveBytes) -> None:
    """Labels what is made inside each part of `model`, and its gradients."""
    body = model.model
    parts = {body: REST}
    for layer in body.layers:
        parts[layer.mixer] = f"mixer {getattr(layer.mixer, 'label', '') or type(layer.mixer).__name__}"
        if layer.ffn is not None:
            parts[layer.ffn] = "ffn"
    for module, label in parts.items():
        before: list[str] = []
        module.register_forward_pre_hook(_entering(live, label, before))
        module.register_forward_hook(_leaving(live, before))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: live.relabel(p.grad, GRADIENTS))


def _entering(live: _LiveBytes, label: str, before: list[str]) -> Callable[..., None]:
    def enter(*_: Any) -> None:
        before.append(live.label)
        live.label = label

    return enter


def _leaving(live: _LiveBytes, before: list[str]) -> Callable[..., None]:
    def leave(*_: Any) -> None:
        live.label = before.pop()

    return leave
