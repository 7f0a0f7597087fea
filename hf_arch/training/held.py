"""What objects hold, as it is when a run begins and at its end: numbers, texts, and which object stands under a name.

A plugin may reach for the trainer, its rows, or the modules around its own, and set there what no recipe tells: a
smoother of labels, the length of rows, the factor of another part. Nothing of this is set while an honest run trains,
but for `_MOVES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from hf_arch.core.plugin_patches import from_plugin

_SIMPLE = (bool, int, float, str, type(None))
_MOVES = frozenset(
    (
        *("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_created_lr_scheduler", "_mixed_mesh_grads"),
        *("_initial_global_step", "_initial_num_input_tokens_seen", "current_gradient_accumulation_steps", "state"),
        *("_group_norms", "_logged_loss", "_logged_step", "_skipped_since_log", "scored_rows", "last_score"),
        *("_taken", "_trial"),
        *("optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader", "model_wrapped", "jit_mode_eval"),
        *("_dataloader_references_ref", "sync_gradients"),
        *("_dataloaders", "_models", "_optimizers", "_schedulers", "_is_accelerate_prepared", "_custom_objects"),
        *("gradient_checkpointing", "_gradient_checkpointing_func", "_require_grads_hook", "_require_grads_hooks"),
        *("forward", "_original_forward", "_compiled_call_impl", "training", "max_seq_len_cached", "auxiliary_losses"),
        *("architectures", "dtype", "use_cache", "auto_map", "_is_torch_compile"),
    )
)
"""What trainer, accelerate and models set while an honest run trains, by name; a function of a plugin among them is
named by where it is from (`plugin_patches.attached`)."""


class Held:
    """What `holders` hold now; `changes` says what they hold otherwise."""

    def __init__(self, holders: Mapping[str, Any]) -> None:
        self.holders = dict(holders)
        self.began = {
            name: {key: (value, _copy(value)) for key, value in _contents(holder)} for name, holder in holders.items()
        }

    def changes(self) -> list[str]:
        """{holder.name} of what is another value or object now, sorted."""
        found = []
        for name, holder in self.holders.items():
            began, now = self.began[name], dict(_contents(holder))
            found += [f"{name}.{key}" for key, was in began.items() if key not in now or not _same(*was, now[key])]
            found += [f"{name}.{key}" for key in now if key not in began]
        return sorted(found)


def _contents(holder: Any) -> Iterator[tuple[str, Any]]:
    values = dict(getattr(holder, "__dict__", {}))
    if isinstance(holder, nn.Module):
        values |= {**dict(holder.named_parameters(recurse=False)), **dict(holder.named_children())}
    yield "__class__", type(holder)
    yield from ((key, value) for key, value in values.items() if key not in _MOVES)


def _copy(value: Any) -> Any:
    """Of a list or mapping that holds simple values alone; None of others, which are known by being the same object."""
    held = value.values() if type(value) is dict else value if type(value) is list else ()
    return value.copy() if held and all(map(_is_simple, held)) else None


def _same(before: Any, copy: Any, now: Any) -> bool:
    if copy is not None:
        return type(now) is type(copy) and bool(now == copy)
    if before is now:  # of nan too, and of tuples of tensors, which cannot be compared
        return True
    return _is_simple(before) and type(before) is type(now) and _is_simple(now) and bool(before == now)


def _is_simple(value: Any) -> bool:
    return isinstance(value, _SIMPLE) or (isinstance(value, tuple) and all(map(_is_simple, value)))


def modules_of(model: nn.Module) -> dict[str, Any]:
    """{path: module} of those that are no plugin's, nor inside of one."""
    return dict(_outside_plugins(model, "model"))


def _outside_plugins(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if not from_plugin(type(module)):
        yield path, module
        for name, child in module.named_children():
            yield from _outside_plugins(child, f"{path}.{name}")
