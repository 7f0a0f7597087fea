"""The page on every architecture, made from the registry: `python -m tools.reference_page > docs/architectures.md`.

Formulas come from the mixers' docstrings, options and defaults from their options classes, costs from `hf_arch.cost` at
one reference size; nothing on the page is written by hand, and a test compares it with what the code says.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import Any

import hf_arch
from hf_arch.core.registry import ARCHITECTURES, MIXERS

REFERENCE: dict[str, Any] = {"vocab_size": 4096, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 8}
SHORT, LONG = 256, 4096

_SIZES = ", ".join(f"`{name}={value}`" for name, value in REFERENCE.items())
_HEAD = f"""# Architectures

Made by `python -m tools.reference_page > docs/architectures.md`; a test keeps it equal to the code.

Costs are those of a model with {_SIZES} and the architecture's other defaults,
computed by `hf_arch.cost(config, seq_len)`, not timed. FLOPs are two per multiply-add of matrix products; the cache is
that of one sequence with fp32 activations.

| name | parameters | train FLOPs a token, T {SHORT} | at T {LONG} | cache bytes after {SHORT} tokens | after {LONG} |
|---|---:|---:|---:|---:|---:|
"""

_MIXERS_HEAD = """# Mixers

T tokens, D width, H heads (Hkv of them with keys and values of their own), K and V the sizes of a head's keys and
values, N numbers of state, M slots. Costs are those of the mixing itself; its Linear layers cost 2 FLOPs a weight and
token. Cached numbers have the activations' type where nothing else is said.
"""

_KEPT = {
    "kv": "keys and values",
    "latent": "a latent of keys and values",
    "recurrent": "a recurrent state",
    "conv": "the last inputs of convolutions",
    "recurrent+conv": "a recurrent state and the last inputs of convolutions or token shifts",
    "both": "keys and values, and the last inputs of convolutions",
}


def page() -> str:
    """The whole page as Markdown."""
    names = hf_arch.list_architectures()
    rows = "\n".join(_cost_row(name) for name in names)
    architectures = "\n".join(_architecture(name) for name in names)
    mixers = "\n".join(_mixer(name, entry) for name, entry in MIXERS.items() if entry.__module__.startswith("hf_arch."))
    return f"{_HEAD}{rows}\n\n{architectures}\n{_MIXERS_HEAD}\n{mixers}"


def _cost_row(name: str) -> str:
    config = ARCHITECTURES.get(name).config(**REFERENCE)
    short, long = hf_arch.cost(config, SHORT), hf_arch.cost(config, LONG)
    numbers: tuple[float, ...] = (short.params_total, short.flops_per_token_train, long.flops_per_token_train)
    numbers += (short.state_bytes(SHORT), long.state_bytes(LONG))
    return f"| [`{name}`](#{name}) | " + " | ".join(f"{number:,.0f}" for number in numbers) + " |"


def _architecture(name: str) -> str:
    entry = ARCHITECTURES.get(name)
    defaults = entry.config()
    mixers = ", ".join(f"`{kind}`" for kind in dict.fromkeys(_types(defaults.mixer)))
    feed_forwards = ", ".join(f"`{kind}`" for kind in dict.fromkeys(_types(defaults.ffn)))
    return (
        f"## {name}\n\n{_text(inspect.getmodule(entry.config))}\n\n"
        f"`model_type` `{defaults.model_type}`; by default `{hf_arch.describe(defaults)[0]}`, mixer {mixers}, "
        f"FFN {feed_forwards}. Source: {entry.paper}.\n{_inits(defaults)}"
    )


def _inits(defaults: Any) -> str:
    """Whose initial values it takes, and the others that `init` may name."""
    if not defaults.inits:
        return ""
    (first, text), *others = defaults.inits.items()
    known = "".join(f" `init: {name}`: {what}." for name, what in others)
    return f"\nInitial values: `{first}` by default, {text}.{known}\n"


def _types(spec: Any) -> list[str]:
    return [item["type"] for item in (spec if isinstance(spec, list) else [spec])]


def _mixer(name: str, entry: Any) -> str:
    fields = dataclasses.fields(entry.Options)
    options = ", ".join(f"`{field.name}={field.default!r}`" for field in fields) or "none"
    facts = f"Keeps between tokens: {_KEPT[entry.cache_kind]}. Options: {options}.\n\nCost: {_cost(entry)}"
    return f"## mixer `{name}`\n\n{_text(inspect.getmodule(entry))}\n\n{facts}\n"


def _cost(entry: Any) -> str:
    """What a mixer's `cost` counts, in the words of its docstrings."""
    own = " ".join((inspect.getdoc(entry.cost) or "").split())
    if not hasattr(entry, "state_entries"):
        return own
    state = (inspect.getdoc(entry.state_entries) or "").rstrip(".")
    text = f"a state of {state}, {2 * entry.state_products} FLOPs a token for each."
    return f"{text} {own}" if "cost" in vars(entry) else text


def _text(module: Any) -> str:
    """A module's docstring with its indented formulas as code blocks."""
    blocks = []
    for block in (inspect.getdoc(importlib.import_module(module.__name__)) or "").split("\n\n"):
        indented = all(line.startswith("    ") for line in block.splitlines())
        blocks.append(f"```text\n{inspect.cleandoc(block)}\n```" if indented else block)
    return "\n\n".join(blocks)


if __name__ == "__main__":
    print(page(), end="")
