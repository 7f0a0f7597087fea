"""Special tokens around a text, the same for prompts, samples, scores and exports.

A tokenizer may put tokens before a text (`<s>`: a beginning, which is kept, once) and after it (`</s>`, as T5's and
BERT's do). What follows a text says that it has ended: a prompt must not end so, nor may a scored text be cut by it.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def split_special(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """(what the tokenizer puts before `text`, the tokens of `text` itself).

    The first is empty where the text brings its beginning along (a prompt that starts with a literal `<s>`).
    """
    plain = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    whole = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    added = whole["special_tokens_mask"]
    first = next((place for place, special in enumerate(added) if not special), None)
    if first is None:  # nothing in the text: what goes before it is told from what goes after it by another text
        first = 1 if adds_bos(tokenizer) else 0
    before = list(whole["input_ids"][:first])
    return ([] if plain[: len(before)] == before else before), plain


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens that a model is given to go on from: the tokenizer's beginning, the text, and no end."""
    before, plain = split_special(tokenizer, text)
    return [*before, *plain]


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its `bos` token before a text."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return bos is not None and ids[:1] == [bos] and len(ids) > len(plain) and plain[:1] != [bos]
