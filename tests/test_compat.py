"""Private and moving names of other libraries stand in the compat files, and each is there in the installed version.

A name that is gone fails one test, which says what rests on it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.cache_utils import LinearAttentionLayer
from transformers.models.auto import configuration_auto, modeling_auto

import hf_arch

PACKAGE = Path(__file__).parents[1] / "hf_arch"
COMPAT = (
    *("layers/compat.py", "training/compat.py", "evaluation/compat.py", "evaluation/fake_tensors.py", "deferred.py"),
    *("ops/compat.py", "core/light_imports.py"),
)
LIBRARIES = ("transformers", "accelerate", "torch", "lm_eval", "peft", "datasets", "huggingface_hub")
RESTS = {
    "DataDependentOutputException": "a plan's memory refused where it depends on values",
    "DynamicOutputShapeException": "a plan's memory refused where shapes depend on values",
    "OPDEFS": "the memory that `hf-arch plan` counts inside our own operators",
    "FakeTensor": "the operations that counting memory leaves out",
    "FakeTensorMode": "the memory that `hf-arch plan` counts",
    "OpOverload": "the operations whose results counting memory looks up",
    "TorchDispatchMode": "the memory that `hf-arch plan` counts, and finding convolutions of a user's mixer",
    "_get_current_dispatch_mode_stack": "the audit of what a plugin lets see every operation in training",
    "_get_current_function_mode_stack": "the same, of every function",
    "tree_flatten": "calls of our own operators that counting memory looks up",
    "tree_leaves": "the memory that `hf-arch plan` counts",
    "tree_unflatten": "calls of our own operators that counting memory looks up",
    "ALL_ATTENTION_FUNCTIONS": "the choice between eager, sdpa, flex and flash attention",
    "ALL_EXPERTS_FUNCTIONS": "the fast products of a mixture of experts",
    "AcceleratorState": "FSDP on CPUs",
    "BaseModelOutputWithPast": "the name under which `generate` passes and reads the cache",
    "CacheLayerMixin": "the cache of recurrent mixers",
    "DistributedType": "FSDP on CPUs",
    "ExpertsInterface": "the choice of how experts are computed",
    "GenericForQuestionAnswering": "the question-answering head",
    "GenericForSequenceClassification": "the sequence-classification head",
    "GenericForTokenClassification": "the token-classification head",
    "GradientCheckpointingLayer": "gradient checkpointing of the blocks",
    "HFLM": "`lm_eval --model hf_arch`",
    "INTEGRATION_TO_CALLBACK": "the check of `training.report_to`",
    "Kind": "finding groups in lm_eval's index of tasks",
    "LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING": "masks that `generate` prepares for recurrent layers",
    "LabelSmoother": "label smoothing over rows whose last position has a target",
    "LinearAttentionLayer": "the cache of recurrent mixers",
    "OutputRecorder": "`output_attentions`",
    "PartialState": "FSDP on CPUs",
    "ROPE_INIT_FUNCTIONS": "RoPE types other than the default",
    "STATIC_LAYER_TYPE_MAPPING": "static caches with recurrent layers",
    "TransformersKwargs": "the keyword arguments of `forward`",
    "Unpack": "the keyword arguments of `forward`",
    "and_masks": "windows over padding and documents",
    "can_return_tuple": "`return_dict=False`",
    "capture_outputs": "`output_hidden_states` and `output_attentions`",
    "sdpa_attention_forward": "whether attention is torch's own, in whose place a kernel may stand",
    "is_flash_attention_requested": "documents and padding under flash attention",
    "create_causal_mask": "the masks of full attention",
    "create_recurrent_attention_mask": "masks that `generate` prepares for recurrent layers",
    "create_sliding_window_causal_mask": "the masks of sliding-window attention",
    "dynamic_rope_update": "RoPE types that depend on the length",
    "forward_ad": "gradients worked out by hand step aside for torch.func and forward mode",
    "get_dtype": "the dtype of foreign checkpoints in lm_eval",
    "merge_with_config_defaults": "`use_cache` and its kin as the config says",
    "modeling_auto": "registration with the Auto classes",
    "register_model": "`lm_eval --model hf_arch`",
    "slice_logits_to_keep": "`logits_to_keep`",
    "use_experts_implementation": "the choice of how experts are computed",
}
# Hooks that their base class calls: where it does not know them any more, an override of ours is dead code.
HOOKS = {
    (PreTrainedModel, "_init_weights"): "the initialisation of every model",
    (PreTrainedModel, "_initialize_weights"): "rescaled projections of bundled models",
    (PreTrainedModel, "_set_gradient_checkpointing"): "runs without gradients, which are not checkpointed",
    (PreTrainedModel, "_can_set_experts_implementation"): "the choice of how experts are computed",
    (PreTrainedModel, "_is_stateful"): "refusing assisted generation with recurrent models",
    (PreTrainedModel, "_no_split_modules"): "device maps that keep blocks whole",
    (PreTrainedModel, "_skip_keys_device_placement"): "caches of models that are spread over devices",
    (PreTrainedModel, "_can_record_outputs"): "`output_hidden_states` and `output_attentions`",
    (PreTrainedModel, "_tp_plan"): "tensor parallelism",
    (PreTrainedModel, "_pp_plan"): "pipeline parallelism",
    (PreTrainedModel, "_supports_sdpa"): "sdpa attention",
    (PreTrainedModel, "_supports_flash_attn"): "flash attention",
    (PreTrainedModel, "_supports_flex_attn"): "flex attention",
    (PreTrainedConfig, "_auto_class"): "repositories with code of their own",
    (PreTrainedConfig, "validate_rope"): "the check of `rope_parameters`",
    (PreTrainedConfig, "validate_layer_type"): "layer types that mixers decide",
    (PreTrainedConfig, "per_layer_config"): "windows that differ by layer, in caches",
    (LinearAttentionLayer, "update_conv_state"): "the cache of convolutions",
    (LinearAttentionLayer, "update_recurrent_state"): "the cache of recurrent mixers",
    (Trainer, "_save_checkpoint"): "a checkpoint that cannot be written leaves no half of one",
    (Trainer, "_save_optimizer_and_scheduler"): "checkpoints of shared optimiser states",
    (Trainer, "_load_optimizer_and_scheduler"): "runs that are extended",
    (Trainer, "_get_train_sampler"): "the order of the training rows",
    (Trainer, "_load_best_model"): "the scores of probes whose best checkpoint is kept",
    (Trainer, "_get_grad_norm"): "skipping steps whose loss or gradient is not finite",
}


def imported(file: str) -> dict[str, str]:
    """Names that a compat file imports from other libraries, with their modules."""
    tree = ast.parse((PACKAGE / file).read_text())
    return {
        alias.name: node.module
        for statement in tree.body
        for node in (statement.body if isinstance(statement, ast.With) else [statement])
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES
        for alias in node.names
        if alias.name not in ("Tensor", "Trainer", "TrainingArguments")
    }  # fmt: skip


NAMES = sorted({(name, module) for file in COMPAT for name, module in imported(file).items()})


@pytest.mark.rest
def test_importing_the_trainer_prints_nothing():
    """transformers prints a line about W&B, which a run that does not use it need not hear of."""
    env = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(PACKAGE.parent)}
    program = "import hf_arch.training.run, hf_arch.training.stages, hf_arch.experiments.planning.prepare"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_name_says_what_rests_on_it():
    assert {name for name, _ in NAMES} == set(RESTS)


@pytest.mark.parametrize(("name", "module"), NAMES)
def test_a_name_is_there(name: str, module: str):
    if module.startswith("lm_eval"):
        pytest.importorskip("lm_eval")
    try:
        importlib.import_module(module)
        found = hasattr(importlib.import_module(module), name)
    except ImportError:
        found = False
    library = module.split(".")[0]
    version = importlib.import_module(library).__version__
    assert found, f"{library} {version} has no {module}.{name}, on which rests: {RESTS[name]}"


@pytest.mark.parametrize(("base", "hook"), HOOKS, ids=lambda value: getattr(value, "__name__", value))
def test_a_hook_is_one_that_its_base_class_knows(base: type, hook: str):
    source = inspect.getsource(inspect.getmodule(base)) + inspect.getsource(base)
    assert hasattr(base, hook) or hook in source, (
        f"{base.__name__} does not know {hook} any more, on which rests: {HOOKS[base, hook]}"
    )


def test_the_tables_of_the_auto_classes_can_be_replaced():
    from hf_arch.deferred import AUTO_CLASSES, _LazyEntries

    what = "on which rests: architectures that the Auto classes know without being imported"
    assert isinstance(configuration_auto.CONFIG_MAPPING._extra_content, _LazyEntries), f"no _extra_content, {what}"
    for name in AUTO_CLASSES:
        mapping = getattr(modeling_auto, name)._model_mapping
        assert isinstance(mapping._extra_content, _LazyEntries), f"{name} has no _extra_content, {what}"


@pytest.mark.parametrize(
    ("module", "name", "rests"),
    [
        ("transformers.utils.import_utils", "define_import_structure", "reading 3,000 files of transformers once"),
        ("transformers.trainer", "datasets", "a Trainer without `datasets`"),
        ("transformers.loss.loss_for_object_detection", "linear_sum_assignment", "models without scipy"),
        ("transformers.loss.loss_utils", "LOSS_MAPPING", "models without scipy"),
    ],
)
def test_what_commands_leave_out_of_imports_is_there(module: str, name: str, rests: str):
    assert hasattr(importlib.import_module(module), name), f"no {module}.{name}, on which rests: {rests}"


def test_the_tables_of_names_are_there():
    from hf_arch.layers.compat import NAME_TABLES, name_table

    assert "llama" in hf_arch.list_architectures()
    for kind in NAME_TABLES:
        table = name_table(kind)
        assert "llama" in table and "hfa_llama" in table, f"{kind}: on which rests: label smoothing shifts the labels"


def test_implementations_are_read_and_set_where_transformers_keeps_them():
    from hf_arch.layers import compat

    model = modeling_auto.AutoModelForCausalLM.from_config(hf_arch.tiny_config("moe"), attn_implementation="eager")
    assert compat.attention_implementation(model.config) == "eager"
    model.set_experts_implementation("batched_mm")
    assert compat.experts_implementation(model.config) == "batched_mm", "what `hf-arch check` compares experts by"
    compat.set_experts_implementation(model.config, "eager")
    assert compat.experts_implementation(model.config) == "eager"
    assert not compat.is_expert_parallel(model.model.layers[0].ffn.experts), "experts by kernels in training"


def test_private_state_of_trainer_accelerate_and_torch_is_where_we_touch_it(tmp_path: Path):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    from hf_arch.training import compat

    args = TrainingArguments(str(tmp_path), report_to="none")
    args.n_gpu  # noqa: B018  # found out at the first look
    assert hasattr(args, "_n_gpu"), "TrainingArguments has no _n_gpu: a process would spread over all GPUs"
    assert "_tr_loss" in inspect.getsource(Trainer), "Trainer has no _tr_loss: skipped steps would count in its loss"
    assert "_globalstep_last_logged" in inspect.getsource(Trainer), "no such name: the loss after a resume"
    assert isinstance(compat.PartialState._shared_state, dict), "accelerate keeps its state elsewhere: FSDP on CPUs"
    assert "_mixed_precision" in inspect.getsource(compat.AcceleratorState), "no _mixed_precision: FSDP on CPUs"
    source = inspect.getsource(ZeroRedundancyOptimizer)
    assert "_all_state_dicts" in source, "no _all_state_dicts: checkpoints of shared optimiser states"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    compat.set_last_rates(scheduler, [0.25])
    assert scheduler.get_last_lr() == [0.25], "no _last_lr: the learning rate of an extended run"
    assert hasattr(torch._C._functorch, "get_interpreter_stack"), "gradients by hand would be wrong under torch.func"
    assert hasattr(torch.autograd.forward_ad, "_current_level"), "gradients by hand would be wrong in forward mode"
    assert hasattr(torch, "_assert_async"), "no _assert_async: errors about padding in compiled graphs"


def _foreign_names(tree: ast.Module) -> set[str]:
    """Local names of what a module imports from the libraries."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                (alias.asname or alias.name).split(".")[0]
                for alias in node.names
                if alias.name.split(".")[0] in LIBRARIES
            }
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] in LIBRARIES:
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _root(node: ast.expr) -> str:
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


OWN_ROOTS = {"self", "cls"}
# Private names of Python's own and of ours, on objects that are no class or module of a library.
ALLOWED = {
    "_fields",
    "_make",
    "_replace",
    "_asdict",
    "_current_frames",
    "_entries",
    "_exit",
    "_getframe",
    "_layer_types",
    "_no_weight_decay",
    "_windows",
}


def private_uses(text: str) -> list[str]:
    """Private attributes of objects that are not ours, and imports of private names or modules, of one source."""
    tree = ast.parse(text)
    foreign, defined, found = _foreign_names(tree), set(), []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        if isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _root(node.value) in OWN_ROOTS:
            defined.add(node.attr)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES and node.level == 0:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [f"{node.lineno}: {node.module}.{part}" for part in parts if _is_private(part)]
        if not isinstance(node, ast.Attribute) or not _is_private(node.attr) or node.attr in ALLOWED:
            continue
        root = _root(node.value)
        own = root in OWN_ROOTS or (node.attr in defined and root not in foreign)
        if not own:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.cpu._is_vnni_supported()",
        "from lm_eval.tasks._index import Kind",
        "from transformers.trainer import _private",
        "def f(model):\n    return model.config._attn_implementation",
        "class T:\n    def f(self):\n        return super()._save_checkpoint(None)",
        "def f(args):\n    args._n_gpu = 1",
    ],
)
def test_the_search_finds_a_private_use(text: str):
    assert len(private_uses(text)) == 1
    assert (
        private_uses(
            "class A:\n    _n = 1\n    def _f(self, other):\n        self._m = other._f()\n        super()._f()"
        )
        == []
    )


def test_no_private_name_of_a_library_is_used_elsewhere():
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        if name not in COMPAT and "plugin/" not in name and (uses := private_uses(file.read_text())):
            found[name] = uses
    hooks = {hook for _, hook in HOOKS}
    left = {
        name: [use for use in uses if not any(use.endswith(f"super().{hook}") for hook in hooks)]
        for name, uses in found.items()
    }
    assert {name: uses for name, uses in left.items() if uses} == {}, "move it to one of " + ", ".join(COMPAT)


def test_tensors_count_their_writes():
    from hf_arch.layers.compat import version_of

    weight = torch.zeros(2)
    before = version_of(weight)
    weight.add_(1)
    assert version_of(weight) > before, "on which rests: refusing logits of a head that has been stepped"


def test_hooks_on_gradients_are_found():
    from hf_arch.training.compat import has_gradient_hook

    layer, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    rests = "on which rests: the audit of gradients that a plugin changes"
    assert not has_gradient_hook(layer) and not has_gradient_hook(layer.weight), rests
    layer.register_full_backward_hook(lambda *_: None)
    other.register_full_backward_pre_hook(lambda *_: None)
    layer.weight.register_hook(lambda gradient: gradient)
    other.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    assert all(map(has_gradient_hook, (layer, other, layer.weight, other.weight))), rests


def test_what_holds_for_a_process_is_found():
    from hf_arch.core.plugin_patches import operators_replaced
    from hf_arch.training.compat import modes_of_operations, saves_tensors_otherwise

    rests = "on which rests: the audit of what a plugin sets for the whole process"
    assert not modes_of_operations() and not saves_tensors_otherwise(), rests
    with TorchFunctionMode(), TorchDispatchMode(), saved_tensors_hooks(lambda one: one, lambda one: one):
        assert len(modes_of_operations()) == 2 and saves_tensors_otherwise(), rests
    before = operators_replaced()
    library = torch.library.Library("aten", "IMPL")
    library.impl("silu", lambda x: x * torch.sigmoid(x), "CPU")
    assert operators_replaced() - before == {"aten/silu/CPU"}, rests
    del library
    assert operators_replaced() == before, rests
