"""Prompts, samples, scores and exports treat the special tokens around a text alike, whatever the tokenizer adds."""

from __future__ import annotations

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import hf_arch
from hf_arch.data.tokenizer import build_tokenizer
from hf_arch.evaluation.generation import SamplingOptions, generate_batch, generate_text
from hf_arch.evaluation.special_tokens import adds_bos, prompt_ids
from hf_arch.evaluation.windows import document_nats

FORMS = {"plain": "$A", "end": "$A {eos}", "beginning": "{bos} $A", "both": "{bos} $A {eos}"}


def tokenizer(form, same=False):
    """A byte tokenizer with separate beginning and end (the same token where `same`), whose processor adds them."""
    plain = build_tokenizer("byte", 0, list)
    bos, eos = (plain.eos_token, plain.eos_token) if same else (plain.pad_token, plain.eos_token)
    ids = plain.convert_tokens_to_ids
    backend = plain.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single=FORMS[form].format(bos=bos, eos=eos), special_tokens=[(token, ids(token)) for token in {bos, eos}]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos, pad_token=plain.pad_token)


def model(tok):
    config = hf_arch.tiny_config("gla", vocab_size=len(tok), eos_token_id=tok.eos_token_id)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_begins_once_and_does_not_end(form, same):
    tok = tokenizer(form, same)
    plain = tok("To be", add_special_tokens=False)["input_ids"]
    before = [tok.bos_token_id] if form in ("beginning", "both") else []
    assert prompt_ids(tok, "To be") == [*before, *plain]
    assert adds_bos(tok) == bool(before)
    if before:
        assert prompt_ids(tok, tok.bos_token + "To be") == [*before, *plain]
        assert prompt_ids(tok, "") == before
    # What the user writes is the user's.
    assert prompt_ids(tok, "To be" + tok.eos_token) == [*before, *plain, tok.eos_token_id]


@pytest.mark.parametrize("form", FORMS)
def test_the_model_is_given_those_tokens(form):
    tok = tokenizer(form)
    network, seen = model(tok), []
    inner = network.generate
    network.generate = lambda ids, **kw: (seen.append(ids[0].tolist()), inner(ids, **kw))[1]
    options = SamplingOptions(max_new_tokens=2, temperature=0)
    generate_text(network, tok, "To be", options)
    list(generate_batch(network, tok, ["To be"], options))
    assert seen == [prompt_ids(tok, "To be")] * 2


@pytest.mark.parametrize("form", FORMS)
def test_scores_are_of_the_same_tokens(form):
    tok = tokenizer(form)
    network = model(tok)
    (_, nats), *_ = document_nats(network, tok, ["To be"], window=32)
    start = [tok.bos_token_id] if form in ("beginning", "both") else [tok.eos_token_id]
    tokens = torch.tensor([[*start, *tok("To be", add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        log_probs = network(tokens).logits[0, :-1].log_softmax(-1)
    expected = -log_probs.gather(1, tokens[0, 1:, None]).squeeze(1)
    torch.testing.assert_close(nats.float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_lm_eval_encodes_as_prompts_are(form):
    pytest.importorskip("lm_eval", reason="extra eval")
    from hf_arch.evaluation.lm_eval import ArchLM

    tok = tokenizer(form)
    scored = ArchLM(model(tok), tokenizer=tok, batch_size=2, device="cpu")
    assert scored.tok_encode("To be") == prompt_ids(tok, "To be")
    context, answer = scored._encode_pair("To be", " or not")
    assert context == prompt_ids(tok, "To be") and answer == tok(" or not", add_special_tokens=False)["input_ids"]
    ids, mask = scored.tok_batch_encode(["To be", "To"])
    assert ids[1][mask[1].bool()].tolist() == prompt_ids(tok, "To")
