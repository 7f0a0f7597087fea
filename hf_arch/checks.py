"""What every sequence model has to hold, checked on one config: for a new mixer before any GPU hour is spent on it.

`check_model` builds the model, moves every parameter off its initial value so that each one shows in the logits, and
holds the model to what the tests of this package hold every architecture to. `hf-arch check` (cli/check.py) prints it.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import hf_arch
from hf_arch.core.registry import plugin_line
from hf_arch.flop_check import Violation, check_flops
from hf_arch.layers.compat import experts_implementation, set_experts_implementation
from hf_arch.layers.contract import LayerOutput
from hf_arch.layers.filled_cache import cache_bytes
from hf_arch.perturbed import PerturbedModels, perturbed_model

LENGTH = 41
TOLERANCE = 1e-4
"""Of the largest value: what fp32 chunk forms may differ by."""
FP64_SHARE = 1e-4
"""Of a tolerance: what fp64 may differ by. A real fault is there as large as before, rounding 1e-9 of it."""


@dataclass(frozen=True)
class CheckResult:
    """One invariant: whether it holds, the largest relative difference found (or why it could not be checked), and,
    where it does not hold, where to look.
    """

    name: str
    passed: bool
    found: str
    hint: str = ""


class _Difference(Violation):
    """Two results that should agree differ by more than rounding may; fp64 tells whether it was rounding."""


def check_model(config: Any, seed: int = 0, device: torch.device | str = "cpu") -> list[CheckResult]:
    """Every invariant on a model of this config, in the order of `INVARIANTS`; a config of `tiny_config` takes seconds.

    Args:
        config: of any registered architecture; at least `LENGTH` positions and 16 tokens.
        seed: of the weights and of the tokens.
        device: where the model runs; weights and tokens are drawn on the CPU, and so are the same everywhere.

    Returns:
        One result an invariant. What the model raises is a failure of that invariant, not of the call. A model that
        cannot run at all is the only result.
    """
    results = []
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, config.vocab_size, (2, LENGTH), generator=generator).to(device)
    models = PerturbedModels(config, seed, device)
    for name, (check, hint) in INVARIANTS.items():
        try:
            results.append(CheckResult(name, True, _checked(models, check, ids)))
        except _Difference as difference:
            results.append(_judged_in_fp64(name, config, seed, ids, difference))
        except Violation as violation:
            results.append(CheckResult(name, False, str(violation), hint))
        except Exception as error:  # a mixer under test may raise anything
            found = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if line := plugin_line(error):
                hint = f"raised at {line.rstrip(': ')} of your file, or by what that line calls"
            results.append(CheckResult(name, False, found, hint))
        if not results[0].passed:
            break
    return results


def _checked(models: PerturbedModels, check: Callable[[Any, Tensor], str], ids: Tensor) -> str:
    try:
        return check(models.copied(), ids)
    except Exception:  # a plugin's module may not be copied rightly: what is held against one that is no copy counts
        return check(models.built(), ids)


def _judged_in_fp64(name: str, config: Any, seed: int, ids: Tensor, difference: _Difference) -> CheckResult:
    """Whether what differs in fp32 differs in fp64 too; only then is the model accused."""
    check, hint = INVARIANTS[name]
    try:
        found = check(perturbed_model(config, seed).double().to(ids.device), ids)
    except Exception:  # a violation, or a model that does not run in fp64: the first finding stands
        return CheckResult(name, False, str(difference), hint)
    return CheckResult(name, True, f"{found} in fp64; rounding in fp32 {difference}")


def _compare(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> float:
    """The largest difference, relative to the largest expected value where that is above 1."""
    if actual.dtype == torch.float64:
        tolerance *= FP64_SHARE
    if not actual.isfinite().all():
        raise Violation("not finite")
    found = ((actual - expected).abs().max() / expected.abs().max().clamp(min=1.0)).item()
    if found > tolerance:
        raise _Difference(f"differs by {found:.2g}, allowed {tolerance:.0e}")
    return found


def _worst(differences: list[float]) -> str:
    worst = max(differences)
    return "equal to the bit" if worst == 0 else f"within {worst:.1e}"


@torch.no_grad()
def _forward(model: Any, ids: Tensor) -> str:
    if not model(ids, use_cache=False).logits.isfinite().all():
        raise Violation("logits are not finite")
    return "finite logits"


def _seeded(model: Any, ids: Tensor) -> str:
    first, second = (perturbed_model(model.config).state_dict() for _ in range(2))
    if other := [name for name, value in first.items() if not torch.equal(value, second[name])]:
        raise Violation(f"{other[0]} begins with other values under the same seed")
    return "equal to the bit"


@torch.no_grad()
def _repeats(model: Any, ids: Tensor) -> str:
    logits = [model(ids, use_cache=False).logits for _ in range(2)]
    tolerance = 0.0 if ids.device.type == "cpu" else 1e-6  # on a GPU sums by atomic additions have no order
    return _worst([_compare(logits[1], logits[0], tolerance)])


@torch.no_grad()
def _rows(model: Any, ids: Tensor) -> str:
    batch = model(ids, use_cache=False).logits
    return _worst([_compare(model(ids[1:], use_cache=False).logits, batch[1:])])


def _training(model: Any, ids: Tensor) -> str:
    """Without dropout a model in training computes what it does in evaluation."""
    config = copy.deepcopy(model.config)
    config.embedding_dropout = config.residual_dropout = config.attention_dropout = 0.0
    plain = perturbed_model(config).to(ids.device, model.dtype)
    evaluated, trained = (plain.train(on)(ids, use_cache=False).logits.detach() for on in (False, True))
    return _worst([_compare(trained, evaluated)])


@torch.no_grad()
def _causality(model: Any, ids: Tensor) -> str:
    before, found = model(ids, use_cache=False).logits, []
    for position in (1, LENGTH // 2, LENGTH - 1):
        changed = ids.clone()
        changed[:, position] = 3 + (changed[:, position] - 2) % (model.config.vocab_size - 3)
        after = model(changed, use_cache=False).logits
        found.append(_compare(after[:, :position], before[:, :position], 1e-5))
        if torch.equal(after[:, position:], before[:, position:]):
            raise Violation(f"token {position} changes nothing after it either")
    return _worst(found)


def _in_parts(sizes: list[int]) -> Callable[[Any, Tensor], str]:
    @torch.no_grad()
    def check(model: Any, ids: Tensor) -> str:
        whole, cache = model(ids, use_cache=False).logits, DynamicCache(config=model.config)
        parts = [model(part, past_key_values=cache).logits for part in ids.split(sizes, dim=1)]
        return _worst([_compare(torch.cat(parts, 1), whole)])

    return check


@torch.no_grad()
def _left_padding(model: Any, ids: Tensor) -> str:
    padding = 11
    padded = torch.cat([torch.zeros_like(ids[1:, :padding]), ids[1:, : LENGTH - padding]], 1)
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    logits = model(torch.cat([ids[:1], padded]), attention_mask=mask, use_cache=False).logits
    alone = model(ids[1:, : LENGTH - padding], use_cache=False).logits
    return _worst([_compare(logits[1:, padding:], alone)])


@torch.no_grad()
def _right_padding(model: Any, ids: Tensor) -> str:
    """A prefill padded on the right, then a step: a sliding cache keeps slots, so models with a window take no step."""
    valid, mask = 30, torch.ones_like(ids)
    mask[1, valid:] = 0
    cache, alone = DynamicCache(config=model.config), model(ids[1:, : valid + 1], use_cache=False).logits
    logits = model(ids * mask, attention_mask=mask, past_key_values=cache).logits
    found = [_compare(logits[1:, :valid], alone[:, :valid])]
    if not model.config.sliding_window and not any(model.config.windows):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        step = model(ids[:, valid : valid + 1], attention_mask=mask, past_key_values=cache).logits
        found.append(_compare(step[1:], alone[:, valid:]))
    return _worst(found)


def _packed_positions(ids: Tensor, lengths: list[int]) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths]).expand(len(ids), -1).to(ids.device)


def _packing(model: Any, ids: Tensor) -> str:
    lengths = [17, 1, LENGTH - 18]
    with torch.no_grad():
        packed = model(ids, position_ids=_packed_positions(ids, lengths), use_cache=False).logits
        alone = torch.cat([model(part, use_cache=False).logits for part in ids.split(lengths, 1)], 1)
    return _worst([_compare(packed, alone)])


def _gradients(model: Any, run: Callable[[], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    run().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def _packed_gradients(model: Any, ids: Tensor) -> str:
    lengths = [17, LENGTH - 17]
    positions = _packed_positions(ids, lengths)
    weights = torch.randn(*ids.shape, model.config.vocab_size, generator=torch.Generator().manual_seed(1)).to(
        ids.device
    )

    def separate() -> Tensor:
        parts = zip(ids.split(lengths, 1), weights.split(lengths, 1), strict=True)
        return torch.stack([(model(part, use_cache=False).logits * weight).sum() for part, weight in parts]).sum()

    packed = _gradients(model, lambda: (model(ids, position_ids=positions, use_cache=False).logits * weights).sum())
    packed = {name: grad.clone() for name, grad in packed.items() if grad is not None}
    alone = _gradients(model, separate)
    return _worst([_compare(grad, alone[name]) for name, grad in packed.items()])


def _every_parameter_learns(model: Any, ids: Tensor) -> str:
    model.train()  # some parameters are those of a loss that training adds
    gradients = _gradients(model, lambda: model(ids, labels=ids, use_cache=False).loss)
    idle = [name for name, grad in gradients.items() if grad is None or not grad.any()]
    if idle:
        raise Violation(f"no gradient reaches {', '.join(idle[:3])}" + (" ..." if len(idle) > 3 else ""))
    if any(not grad.isfinite().all() for grad in gradients.values()):
        raise Violation("a gradient is not finite")
    return f"{len(gradients)} parameters"


def _checkpointing(model: Any, ids: Tensor) -> str:
    model.train()

    def gradients() -> dict[str, Tensor]:
        torch.manual_seed(2)  # of dropout
        found = _gradients(model, lambda: model(ids, labels=ids, use_cache=False).loss)
        return {name: grad.clone() for name, grad in found.items() if grad is not None}

    plain = gradients()
    model.activation_checkpointing_enable()
    return _worst([_compare(grad, plain[name], 1e-5) for name, grad in gradients().items()])


def _beams(model: Any, ids: Tensor) -> str:
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    prompt = ids[:, : LENGTH - 7]
    if not torch.equal(model.generate(prompt, **options), model.generate(prompt, use_cache=False, **options)):
        raise Violation("beam search finds other tokens with a cache than without")
    return "same tokens"


@torch.no_grad()
def _saving(model: Any, ids: Tensor) -> str:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder).eval().to(ids.device)
    for name, value in loaded.state_dict().items():
        if not torch.equal(value, model.state_dict()[name]):
            raise Violation(f"{name} is not loaded as it was saved")
    # Grouped products of experts choose a kernel by the weights' addresses, and round by it: the loops do not.
    chosen = experts_implementation(model.config)
    try:
        for each in (loaded, model):
            set_experts_implementation(each.config, "eager")
        # On a GPU sums by atomic additions have no order.
        tolerance = 0.0 if ids.device.type == "cpu" else 1e-6
        return _worst([_compare(loaded(ids, use_cache=False).logits, model(ids, use_cache=False).logits, tolerance)])
    finally:
        set_experts_implementation(model.config, chosen)


@torch.no_grad()
def _cost(model: Any, ids: Tensor) -> str:
    cost, cache = hf_arch.cost(model.config, LENGTH, batch_size=len(ids)), DynamicCache(config=model.config)
    if cost.params_total != model.num_parameters():
        raise Violation(f"cost counts {cost.params_total:,} parameters, the model has {model.num_parameters():,}")
    model(ids, past_key_values=cache)
    held = cache_bytes(cache)
    if cost.state_bytes(LENGTH) != held:
        raise Violation(f"cost counts {cost.state_bytes(LENGTH):,} bytes of state, the cache holds {held:,}")
    return f"{cost.params_total:,} parameters, {held:,} bytes of state"


@torch.no_grad()
def _reference(model: Any, ids: Tensor) -> str:
    """Each mixer that brings a `reference` against it, on inputs of its own."""
    found = []
    for layer in model.model.layers:
        reference = getattr(layer.mixer, "reference", None)
        if reference is not None:
            generator = torch.Generator().manual_seed(layer.mixer.layer_idx)
            x = torch.randn(2, LENGTH, model.config.hidden_size, generator=generator).to(model.dtype)
            found.append(_compare(LayerOutput.of(layer.mixer(x)).hidden_states, reference(x)))
    return _worst(found) if found else "no mixer brings a `reference`"


def _bf16(model: Any, ids: Tensor) -> str:
    with torch.autocast(ids.device.type, torch.bfloat16):  # also around backward, as some callers leave it
        gradients = _gradients(model, lambda: model(ids, labels=ids, use_cache=False).loss)
    if any(grad is not None and not grad.isfinite().all() for grad in gradients.values()):
        raise Violation("a gradient is not finite under autocast")
    return "finite"


Invariant = tuple[Callable[[Any, Tensor], str], str]
INVARIANTS: dict[str, Invariant] = {
    "forward": (_forward, "a batch without padding, cache or documents does not run; nothing else was checked"),
    "seeded start": (_seeded, "initial values are not those of the seed; draw them by torch in `init_weights`"),
    "same twice": (_repeats, "a second call gives another result; something is drawn, or kept outside `state`"),
    "rows apart": (_rows, "a row changes the others; look for means, norms and sorting over the whole batch"),
    "training as evaluation": (_training, "`self.training` changes more than dropout; look for statistics of a batch"),
    "causality": (_causality, "a later token changes earlier logits; look for sums or norms over the whole of time"),
    "reference": (_reference, "the mixer's `reference(x)`, [B, T, D] to [B, T, D], computes something else"),
    "chunks with a cache": (_in_parts([20, 14, 1, 6]), "prefill in parts differs; `state` does not keep all of it"),
    "steps with a cache": (_in_parts([1] * LENGTH), "single steps differ from the whole; compare both forms"),
    "left padding": (_left_padding, "padding gets into the state; `layout.zero_padding` keeps it out"),
    "right padding": (_right_padding, "padding reaches earlier tokens or the state; see `layout.zero_padding`"),
    "packed documents": (_packing, "a state runs on into the next document; pass `layout.segment_ids` to the op"),
    "packed gradients": (_packed_gradients, "a gradient crosses the border of documents"),
    "every parameter learns": (_every_parameter_learns, "a parameter that is not used, or detached"),
    "gradient checkpointing": (_checkpointing, "recomputing the forward gives another result; look for hidden state"),
    "beam search": (_beams, "a part of the state is kept outside `state`, where beams are not reordered"),
    "save and load": (_saving, "a tensor is neither a parameter nor a persistent buffer, or initialised on loading"),
    "cost": (_cost, "`cost` and the mixer disagree; see MixerCost"),
    "FLOPs": (check_flops, "`cost` gives other FLOPs than the products that run; see MixerCost"),
    "bf16 autocast": (_bf16, "decays, states and sums over time belong in fp32: `state_dtype`, `without_autocast`"),
}  # fmt: skip
"""Name -> the check, and where to look when it fails."""
