"""Padding and packed documents, in whatever way they are described: right, or refused in one line. For every
registered architecture, eager and compiled."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    ContinuousBatchingConfig,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    StaticCache,
)

import hf_arch
from tests.suite.models import ARCHITECTURES, ONE_OF_EACH_KIND, close, perturbed_model, token_ids

LENGTHS = [8, 1, 12]
TOTAL = sum(LENGTHS)


def numbers(batch: int = 2, first: int = 0) -> Tensor:
    """[batch, TOTAL]: the document of each token."""
    return torch.repeat_interleave(torch.arange(len(LENGTHS)) + first, torch.tensor(LENGTHS)).expand(batch, -1)


def restarting(batch: int = 2) -> Tensor:
    return torch.cat([torch.arange(n) for n in LENGTHS]).expand(batch, -1)


def borders(batch: int = 2) -> Tensor:
    return torch.tensor([0, *LENGTHS * batch]).cumsum(0).to(torch.int32)


def block_mask(batch: int = 2, heads: int = 1) -> Tensor:
    """[batch, heads, TOTAL, TOTAL] bool: causal within documents."""
    document = numbers(batch)
    same = (document[:, :, None] == document[:, None]) & torch.ones(TOTAL, TOTAL).tril().bool()
    return same[:, None].expand(-1, heads, -1, -1)


def additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


def ways(batch: int = 2) -> dict[str, dict[str, Any]]:
    ones, longest = torch.ones(batch, TOTAL, dtype=torch.long), max(LENGTHS)
    ends = borders(batch)
    flash = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return {
        "position_ids": {"position_ids": restarting(batch)},
        "position_ids [1, T]": {"position_ids": restarting(1)},
        "position_ids and ones": {"position_ids": restarting(batch), "attention_mask": ones},
        "cu_seqlens": {"cu_seqlens": ends},
        "cu_seqlens and ones": {"cu_seqlens": ends.long(), "attention_mask": ones.bool()},
        "cu_seq_lens_q/k": flash,
        "seq_idx": {"seq_idx": numbers(batch).to(torch.int32)},
        "numbers in attention_mask": {"attention_mask": numbers(batch, 1)},
        "4-D bool": {"attention_mask": block_mask(batch)},
        "4-D additive": {"attention_mask": additive(block_mask(batch))},
        "4-D bool, positions": {"attention_mask": block_mask(batch), "position_ids": restarting(batch)},
        "4-D for each head": {"attention_mask": additive(block_mask(batch, 4))},
        "4-D for all rows": {"attention_mask": block_mask(1)},
        "3-D": {"attention_mask": block_mask(batch)[:, 0]},
        "3-D integers": {"attention_mask": block_mask(batch)[:, 0].long()},
        "all that a flattening collator gives": {
            "position_ids": restarting(batch),
            "seq_idx": numbers(batch).to(torch.int32),
            **flash,
        },
    }


@torch.no_grad()
def apart(model: Any, ids: Tensor, **options: Any) -> Tensor:
    return torch.cat([model(part, use_cache=False, **options).logits for part in ids.split(LENGTHS, 1)], 1)


@torch.no_grad()
def assert_equal_to_separate(name: str, batch: int, use_cache: bool, of: Collection[str] = ()) -> None:
    """Documents described in any way, or in those of `of`, give the logits of separate ones."""
    model, ids = perturbed_model(name), token_ids(batch, TOTAL)
    expected = apart(model, ids)
    every = ways(batch)
    for way in of or every:
        close(model(ids, use_cache=use_cache, **every[way]).logits, expected)


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_documents_described_in_any_way_equal_separate_ones(name: str) -> None:
    # How they are described is read before any layer runs: all of the product for one of each kind is enough.
    if name in ONE_OF_EACH_KIND:
        for batch in (1, 2):
            for use_cache in (False, True):
                assert_equal_to_separate(name, batch, use_cache)
    else:
        assert_equal_to_separate(name, 1, use_cache=False, of=("cu_seqlens", "4-D additive"))
        assert_equal_to_separate(name, 2, use_cache=True, of=("position_ids", "seq_idx", "cu_seq_lens_q/k", "4-D bool"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ONE_OF_EACH_KIND])
def test_all_ways_to_describe_documents(name: str) -> None:
    assert_equal_to_separate(name, 1, use_cache=False)
    assert_equal_to_separate(name, 2, use_cache=True)


@torch.no_grad()
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "alibi"])
@pytest.mark.parametrize("window", [None, 4])
def test_positions_restart_with_documents(position: str, window: int | None) -> None:
    model, ids = perturbed_model("llama", position=position, sliding_window=window), token_ids(2, TOTAL)
    expected = apart(model, ids)
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        for given in ways().values():
            close(model(ids, use_cache=False, **given).logits, expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_of_documents_described_in_any_way(name: str) -> None:
    model, ids = perturbed_model(name), token_ids(1, TOTAL)
    weights = torch.randn(1, TOTAL, 97, generator=torch.Generator().manual_seed(5))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients(**given: Any) -> tuple[Tensor | None, ...]:
        total = (model(ids, use_cache=False, **given).logits * weights).sum()
        return torch.autograd.grad(total, parameters, allow_unused=True)

    expected = gradients(position_ids=restarting(1))
    for way in ("cu_seqlens", "4-D additive"):
        for grad, its in zip(expected, gradients(**ways(1)[way]), strict=True):
            if grad is not None:
                close(its, grad)


def rows_with_gaps(kind: str) -> Tensor:
    """[3, TOTAL] masks: a row without padding, and two with padding of `kind`."""
    mask = torch.ones(3, TOTAL, dtype=torch.long)
    for row, n in ((1, 5), (2, 11)):
        start = {"left": 0, "right": TOTAL - n, "middle": 6}[kind]
        mask[row, start : start + n] = 0
    return mask


def run(model: Any, ids: Tensor, mask: Tensor, pieces: list[int], **options: Any) -> Tensor:
    """Logits of valid tokens, the row fed in pieces."""
    cache = DynamicCache(config=model.config) if len(pieces) > 1 else None
    outputs, end = [], 0
    for length in pieces:
        start, end = end, end + length
        outputs.append(
            model(
                ids[:, start:end],
                attention_mask=mask[:, :end],
                past_key_values=cache,
                use_cache=cache is not None,
                **options,
            ).logits
        )
    return torch.cat(outputs, 1)[mask.bool()]


# How many blocks or rows documents and padding need depends on the data, so that a compiler breaks the graph there.
# Compiling takes ten seconds for each: the fast suite does it for one of attention and recurrences, CI for one of each
# kind.
COMPILED = [pytest.param(name, marks=() if name == "mixed" else pytest.mark.slow) for name in ARCHITECTURES]
ATTENTION = {"full_attention", "sliding_attention"}
STATEFUL = [name for name in ARCHITECTURES if not ATTENTION.issuperset(hf_arch.tiny_config(name).layer_types)]


@pytest.mark.rest
@torch.no_grad()
@pytest.mark.parametrize("name", COMPILED)
def test_padding_anywhere_compiled_as_eager(name: str) -> None:
    model, ids = perturbed_model(name), token_ids(3, TOTAL)
    windows = any(model.config.windows)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    for kind in ("left", "right", "middle"):
        mask = rows_with_gaps(kind)
        expected = torch.cat(
            [model(row[m.bool()][None], use_cache=False).logits[0] for row, m in zip(ids, mask, strict=True)]
        )
        # A sliding cache keeps slots, so that padding inside its window pushes valid tokens out: refused below.
        for pieces in [[TOTAL]] if windows else [[TOTAL], [9, 11, 1]]:
            close(run(model, ids, mask, pieces), expected)
            close(run(compiled, ids, mask, pieces), expected)
    whole = torch.ones(3, TOTAL, dtype=torch.long)
    close(run(compiled, ids, whole, [9, 11, 1]), model(ids, use_cache=False).logits[whole.bool()])


@pytest.mark.rest
@pytest.mark.parametrize("name", COMPILED)
def test_gradients_of_padded_rows_compiled_as_eager(name: str) -> None:
    model, ids = perturbed_model(name), token_ids(3, TOTAL)
    mask = rows_with_gaps("right")
    weights = torch.randn(int(mask.sum()), 97, generator=torch.Generator().manual_seed(5))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients(model: Any) -> tuple[Tensor | None, ...]:
        logits = model(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
        return torch.autograd.grad((logits * weights).sum(), parameters, allow_unused=True)

    torch._dynamo.reset()
    for grad, its in zip(gradients(model), gradients(torch.compile(model, backend="aot_eager")), strict=True):
        if grad is not None:
            close(its, grad)


@pytest.mark.rest
@torch.no_grad()
@pytest.mark.parametrize("name", COMPILED)
def test_documents_compiled_equal_separate_ones(name: str) -> None:
    model, ids = perturbed_model(name), token_ids(2, TOTAL)
    expected = apart(model, ids)
    for way, given in ways().items():
        if way in ("position_ids and ones", "cu_seq_lens_q/k", "4-D additive"):
            torch._dynamo.reset()
            close(torch.compile(model, backend="eager")(ids, use_cache=False, **given).logits, expected)


@pytest.mark.sampled(10)
@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_next_to_documents(name: str) -> None:
    model, ids = perturbed_model(name), token_ids(2, TOTAL)
    for gap in (slice(0, 3), slice(TOTAL - 4, TOTAL), slice(5, 11)):
        mask = torch.ones(2, TOTAL, dtype=torch.long)
        mask[1, gap] = 0
        document, valid = numbers(), mask.bool()
        expected = torch.cat(
            [
                model(ids[row, valid[row] & (document[row] == number)][None], use_cache=False).logits[0]
                for row in range(2)
                for number in document[row][valid[row]].unique().tolist()
            ]
        )
        positions = restarting().clone()
        for number in range(len(LENGTHS)):
            own = document[1] == number
            positions[1, own] = (mask[1, own].cumsum(0) - 1).clamp(min=0)
        pairs = block_mask() & valid[:, None, None]
        for given in (
            {"attention_mask": mask, "position_ids": positions},
            {"attention_mask": mask, "cu_seqlens": borders()},
            {"attention_mask": mask, "seq_idx": document},
            {"attention_mask": mask * (document + 1)},
            {"attention_mask": pairs},
            {"attention_mask": additive(pairs), "position_ids": positions},
        ):
            close(model(ids, use_cache=False, **given).logits[valid], expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba2", "rwkv7", "mixed"])
def test_heads_take_documents_in_any_way(name: str) -> None:
    ids, config = token_ids(2, TOTAL), hf_arch.tiny_config(name)
    for auto in (
        AutoModelForSequenceClassification,
        AutoModelForQuestionAnswering,
        AutoModelForTokenClassification,
    ):
        torch.manual_seed(0)
        model = auto.from_config(config).eval()
        expected = model(ids, position_ids=restarting())[0]
        for given in ways().values():
            close(model(ids, **given)[0], expected)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two ways": ({"position_ids": restarting(), "cu_seqlens": torch.tensor([0, 21, 42])}, "describe different"),
    "one document and three": ({"position_ids": torch.arange(TOTAL)[None], "seq_idx": numbers()}, "describe different"),
    "q and k": ({"cu_seq_lens_q": borders(), "cu_seq_lens_k": torch.tensor([0, 21, 42])}, "describe different"),
    "borders of one row": ({"cu_seqlens": borders(1)}, "2 x 21 tokens"),
    "borders over rows": ({"cu_seqlens": torch.tensor([0, 30, 42])}, "from one row into the next"),
    "falling borders": ({"cu_seqlens": torch.tensor([0, 21, 8, 42])}, "must rise"),
    "borders in a square": ({"cu_seqlens": borders(2).view(1, 1, -1)}, "shape"),
    "too short": (ways()["cu_seq_lens_q/k"] | {"max_length_q": 3}, "less than the longest"),
    "lengths alone": ({"max_length_q": 12}, "borders"),
    "numbers that return": ({"seq_idx": (numbers() == 1).long()}, "not decrease"),
    "negative numbers": ({"attention_mask": numbers(2, -1)}, "negative"),
    "seq_idx of another length": ({"seq_idx": numbers()[:, :-1]}, "does not fit"),
    "a mask of another length": ({"attention_mask": torch.ones(2, TOTAL + 3)}, "must cover"),
    "a mask of too many axes": ({"attention_mask": block_mask()[None]}, "does not fit"),
    "floats 0 and 1": ({"attention_mask": block_mask().float()}, "mask.bool"),
    "segment_ids": ({"segment_ids": numbers()}, "unknown argument 'segment_ids'.*position_ids"),
    "document_ids": ({"document_ids": numbers()}, "unknown argument.*position_ids"),
    "cu_seqlens_q": ({"cu_seqlens_q": borders()}, "unknown argument.*position_ids"),
    "indices": ({"indices": borders()}, "unknown argument.*position_ids"),
    "batch_seq_lens": ({"batch_seq_lens": [8, 13]}, "unknown argument.*position_ids"),
    "a typing mistake": ({"output_hiden_states": True}, "nearest: 'output_hidden_states'"),
    "another cache argument": ({"cache_params": DynamicCache()}, "pass the cache as"),
    "is_causal": ({"is_causal": False}, "is_causal"),
    "token_type_ids": ({"token_type_ids": numbers()}, "only zeros"),
}


@torch.no_grad()
@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", ["llama", "mamba2", "mixed"])
def test_what_is_not_supported_is_refused_by_name(name: str, case: str) -> None:
    given, line = REFUSED[case]
    with pytest.raises(ValueError, match=line):
        perturbed_model(name)(token_ids(2, TOTAL), **given)


@pytest.mark.rest
@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", pytest.param("mamba2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ["two ways", "falling borders", "numbers that return", "segment_ids"])
def test_a_compiled_model_refuses_too(name: str, case: str) -> None:
    torch._dynamo.reset()
    with pytest.raises((ValueError, RuntimeError), match=REFUSED[case][1]):
        compiled = torch.compile(perturbed_model(name, num_hidden_layers=1), backend="eager")
        compiled(token_ids(2, TOTAL), use_cache=False, **REFUSED[case][0])


@torch.no_grad()
@pytest.mark.parametrize("name", STATEFUL)
def test_recurrent_layers_refuse_other_masks_over_pairs(name: str) -> None:
    model, ids = perturbed_model(name), token_ids(2, TOTAL)
    prefix = torch.ones(TOTAL, TOTAL).tril().bool()
    prefix[:5, :5] = True
    window = torch.ones(TOTAL, TOTAL).tril().triu(-3).bool()
    by_head = block_mask(2, 4).clone()
    by_head[:, 1, 20, 9] = False
    biased = additive(block_mask()) + torch.eye(TOTAL)
    swapped = block_mask().clone()
    swapped[:, :, 12, :8], swapped[:, :, 12, 9:12] = True, False
    for mask in (prefix.expand(2, 1, -1, -1), window.expand(2, -1, -1), by_head, biased, swapped):
        with pytest.raises(ValueError, match="position_ids"):
            model(ids, attention_mask=mask)


@pytest.mark.rest
@torch.no_grad()
@pytest.mark.parametrize("name", [case for case in COMPILED if case.values[0] in STATEFUL])
def test_compiled_recurrent_layers_refuse_other_masks_over_pairs(name: str) -> None:
    prefix = torch.ones(TOTAL, TOTAL).tril().bool()
    prefix[:5, :5] = True
    torch._dynamo.reset()
    compiled = torch.compile(perturbed_model(name), backend="eager")
    with pytest.raises(RuntimeError, match="position_ids"):
        compiled(token_ids(2, TOTAL), attention_mask=prefix.expand(2, 1, -1, -1), use_cache=False)


@torch.no_grad()
def test_attention_follows_any_mask_over_pairs() -> None:
    model, ids = perturbed_model("llama", sliding_window=4), token_ids(2, TOTAL)
    plain = perturbed_model("llama", sliding_window=None)
    mask = torch.ones(TOTAL, TOTAL).tril().bool().expand(2, 1, -1, -1)
    close(plain(ids, attention_mask=mask).logits, plain(ids).logits)
    for given in (mask, additive(mask)):
        close(model(ids, attention_mask=given, use_cache=False).logits, model(ids, use_cache=False).logits)
    prefix = mask.clone()
    prefix[..., :5, :5] = True
    assert not torch.allclose(plain(ids, attention_mask=prefix).logits[:, 0], plain(ids).logits[:, 0])


@pytest.mark.sampled(10)
@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_documents_after_a_filled_cache_are_refused(name: str) -> None:
    model, ids = perturbed_model(name), token_ids(2, TOTAL)
    for given in (
        {"position_ids": restarting()},
        {"position_ids": torch.arange(TOTAL)[None]},
        {"position_ids": restarting() + 6, "attention_mask": torch.ones(2, TOTAL + 6)},
        {"cu_seqlens": borders()},
        {"seq_idx": numbers()},
        {"attention_mask": torch.cat([torch.ones(2, 6, dtype=torch.long), numbers(2, 1)], 1)},
    ):
        cache = model(ids[:, :6], use_cache=True).past_key_values
        with pytest.raises(ValueError, match="filled cache"):
            model(ids, past_key_values=cache, **given)
    for given in ways().values():
        cache = model(ids, use_cache=True, **given).past_key_values
        if "4-D" in str(given) or (not model._is_stateful and given.get("attention_mask", ids).dim() > 2):
            continue  # attention's keys are under the caller's masks
        with pytest.raises(ValueError, match="packed documents"):
            model(ids[:, :1], past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mamba2", "retnet", "gated_delta_net", "linformer"])
def test_the_last_document_goes_on_in_states_from_given_positions(name: str) -> None:
    model, ids = perturbed_model(name), token_ids(1, TOTAL + 2)
    last = LENGTHS[-1]
    cache = model(ids[:, :TOTAL], position_ids=restarting(1), use_cache=True).past_key_values
    positions = torch.arange(last, last + 2)[None]
    expected = model(ids[:, TOTAL - last :], use_cache=False).logits[:, -2:]
    close(model(ids[:, TOTAL:], position_ids=positions, past_key_values=cache).logits, expected)


@pytest.mark.rest
@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mamba2"])
def test_a_compiled_model_does_not_continue_documents(name: str) -> None:
    torch._dynamo.reset()
    model, ids = perturbed_model(name, num_hidden_layers=1), token_ids(2, TOTAL)
    compiled = torch.compile(model, backend="eager")
    whole = torch.arange(TOTAL)[None]
    cache = compiled(ids, position_ids=whole, use_cache=True).past_key_values
    compiled(ids[:, :1], position_ids=whole[:, -1:] + 1, past_key_values=cache)
    cache = compiled(ids, position_ids=restarting(), use_cache=True).past_key_values
    with pytest.raises(RuntimeError, match="packed documents"):
        compiled(ids[:, :1], past_key_values=cache)


@torch.no_grad()
def test_a_window_over_padding_after_a_filled_cache_is_refused() -> None:
    model, ids = perturbed_model("llama", sliding_window=6), token_ids(3, TOTAL)
    for kind in ("right", "middle"):
        mask = rows_with_gaps(kind)
        expected = torch.cat(
            [model(row[m.bool()][None], use_cache=False).logits[0] for row, m in zip(ids, mask, strict=True)]
        )
        close(run(model, ids, mask, [TOTAL]), expected)
        cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
        grown = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], 1)
        if kind == "right":
            with pytest.raises(ValueError, match="pad on the left"):
                model(ids[:, :1], attention_mask=grown, past_key_values=cache)


CACHES: dict[str, Any] = {
    "a tuple": lambda config: ((torch.zeros(2, 2, 3, 8), torch.zeros(2, 2, 3, 8)),) * 2,
    "an encoder's": lambda config: EncoderDecoderCache(DynamicCache(), DynamicCache()),
    "one layer": lambda config: DynamicCache(config=hf_arch.tiny_config("llama", num_hidden_layers=1)),
    "other layers": lambda config: DynamicCache(
        config=hf_arch.tiny_config(
            "mamba2" if set(config.layer_types) == {"full_attention"} else "llama",
            num_hidden_layers=config.num_hidden_layers,
        )
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mla", "gla", "mamba2", "rwkv7", "mixed", "linformer"])
def test_other_caches_are_refused_in_one_line(name: str) -> None:
    model, ids = perturbed_model(name), token_ids(2, 8)
    for what, make in CACHES.items():
        with pytest.raises(ValueError, match=r"DynamicCache\(config=model.config\)") as error:
            model(ids, past_key_values=make(model.config))
        assert "\n" not in str(error.value), what
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="it holds 2 rows"):
        model(ids[:1], past_key_values=cache)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", ["llama", "mla"])
def test_keys_of_other_sizes_are_refused_in_one_line(name: str, grad: bool) -> None:
    """As PEFT's prefix tuning fills them for latent attention."""
    model, ids = perturbed_model(name), token_ids(2, 8)
    for sizes in ((5, 8), (1, 6)):
        filled = DynamicCache(config=model.config)
        for index in range(model.config.num_hidden_layers):
            filled.update(torch.zeros(2, sizes[0], 3, sizes[1]), torch.zeros(2, sizes[0], 3, sizes[1]), index)
        with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="past_key_values: keys of layer 0") as error:
            model(ids, past_key_values=filled)
        assert "\n" not in str(error.value)


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cache_without_a_config_gets_the_layers_of_the_model(name: str) -> None:
    model, ids = perturbed_model(name), token_ids(2, 9)
    cache = DynamicCache()
    parts = [model(part, past_key_values=cache).logits for part in ids.split([6, 1, 2], 1)]
    close(torch.cat(parts, 1), model(ids, use_cache=False).logits)


@torch.no_grad()
def test_a_static_cache_that_is_too_short_is_refused() -> None:
    model, ids = perturbed_model("llama"), token_ids(2, 9)
    cache = StaticCache(config=model.config, max_cache_len=8)
    with pytest.raises(ValueError, match="max_cache_len=9"):
        model(ids, past_key_values=cache)
    cache = StaticCache(config=model.config, max_cache_len=8)
    model(ids[:, :8], past_key_values=cache)
    with pytest.raises(ValueError, match="max_cache_len=9"):
        model(ids[:, 8:], past_key_values=cache)


@torch.no_grad()
def test_documents_fill_an_empty_static_cache() -> None:
    model, ids = perturbed_model("llama"), token_ids(2, TOTAL)
    cache = StaticCache(config=model.config, max_cache_len=TOTAL + 4)
    close(model(ids, past_key_values=cache, cu_seqlens=borders()).logits, apart(model, ids))


def test_an_early_exit_is_refused_before_anything_changes() -> None:
    model, ids = perturbed_model("llama"), token_ids(1, 8)
    for given in ({"assistant_early_exit": 1}, {"generation_config": GenerationConfig(assistant_early_exit=1)}):
        with pytest.raises(ValueError, match="assistant_early_exit"):
            model.generate(ids, max_new_tokens=2, **given)
    assert model.config.num_hidden_layers == 2


@pytest.mark.parametrize("name", ["mla", "mamba2", "rwkv7", "mixed", "alibi", "softcap", "window", "heads"])
def test_continuous_batching_is_refused_before_it_starts(name: str) -> None:
    heads = [{"type": "attention", "num_kv_heads": n} for n in (2, 4)]
    special: dict[str, dict[str, Any]] = {
        "alibi": {"position": "alibi"},
        "softcap": {"attn_logit_softcapping": 5.0},
        "window": {"sliding_window": 1},
        "heads": {"mixer": heads},
    }
    model = perturbed_model("llama" if name in special else name, **special.get(name, {}))
    with pytest.raises(ValueError, match="continuous batching is not supported"):
        model.generate_batch([[3, 4, 5]], generation_config=GenerationConfig(max_new_tokens=2, eos_token_id=-1))


@pytest.mark.rest
@pytest.mark.parametrize("name", ["llama", "gpt2", "moe"])
def test_continuous_batching_gives_the_same_tokens(name: str) -> None:
    model = perturbed_model(name, eos_token_id=None)
    prompts = [token_ids(1, length, seed=length)[0].tolist() for length in (9, 5)]
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
    pages = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)  # by itself it takes the machine's free memory
    outputs = model.generate_batch(
        prompts, generation_config=config, continuous_batching_config=pages, progress_bar=False
    )
    assert sorted(list(output.generated_tokens) for output in outputs.values()) == sorted(expected)
