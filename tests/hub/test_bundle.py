"""A repository that brings its own code loads, generates and saves again where the package is not installed."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.core.registry import load_plugin
from hf_arch.hub.bundle import bundle
from hf_arch.hub.repository import stage_model
from hf_arch.versions import SUPPORTED
from tests.suite.models import ONE_OF_EACH_KIND

from .conftest import save_tiny

TOKENS = torch.randint(3, 97, (2, 19), generator=torch.Generator().manual_seed(3))

# What a stranger does with each repository, one after the other in one process.
STRANGER = """
import json, sys, warnings
from pathlib import Path
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

torch.set_num_threads(1)
results, first = {}, None
for folder in map(Path, sys.argv[1:]):
    said = load_file(folder / "expected.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.no_grad():
        logits = model(said["tokens"]).logits
    generated = model.generate(said["tokens"], max_new_tokens=6, do_sample=False, use_cache=True)
    copy = folder.parent / (folder.name + "_copy")
    model.save_pretrained(copy)
    again = AutoModelForCausalLM.from_pretrained(copy, trust_remote_code=True).eval()
    body = AutoModel.from_pretrained(copy, trust_remote_code=True)
    head = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        again_logits = again(said["tokens"]).logits
    if first is None:
        first = model, said
    results[folder.name] = {
        "logits": torch.equal(logits, said["logits"]),
        "generated": torch.equal(generated, said["generated"]),
        "copied": torch.equal(again_logits, logits),
        "heads": [type(body).__name__, type(head).__name__],
    }
# The other repositories' classes have not touched the first one's.
generated = first[0].generate(first[1]["tokens"], max_new_tokens=6, do_sample=False, use_cache=True)
assert torch.equal(generated, first[1]["generated"])
assert not any(name.split(".")[0] == "hf_arch" for name in sys.modules)
print(json.dumps(results))
"""


def repository(folder: Path, name: str, **overrides) -> Path:
    """A staged repository of a tiny model, and beside its weights what the model says."""
    saved = save_tiny(folder / "saved" / folder.name / name, name, **overrides)
    model = AutoModelForCausalLM.from_pretrained(saved).eval()
    with torch.no_grad():
        logits = model(TOKENS).logits
    generated = model.generate(TOKENS, max_new_tokens=6, do_sample=False, use_cache=True)
    staged = folder / f"repo_{name}"
    staged.mkdir()
    stage_model(saved, staged)
    save_file({"tokens": TOKENS, "logits": logits, "generated": generated}, staged / "expected.safetensors")
    return staged


def check(done: subprocess.CompletedProcess[str], names: list[str]) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert list(results) == names
    for name, result in results.items():
        assert result["logits"] and result["generated"] and result["copied"], (name, result)
        assert result["heads"][0].endswith("Model") and result["heads"][1].endswith("ForSequenceClassification")


REST = [name for name in hf_arch.list_architectures() if name not in ONE_OF_EACH_KIND]


@pytest.mark.rest
@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", [ONE_OF_EACH_KIND, pytest.param(REST, marks=pytest.mark.slow)], ids=["kinds", "rest"])
def test_an_architecture_and_any_mix_of_components_load_without_the_package(
    names: Sequence[str], tmp_path: Path, python
):
    plugin = tmp_path / "running_mean.py"
    plugin.write_text(PLUGIN)
    load_plugin(plugin)
    folders = [repository(tmp_path, name) for name in names]
    # Mixers that the architecture's module does not import, and one from a file outside of the package.
    for index, mixer in enumerate((["gla", "mamba", "attention"], ["running_mean_of_a_test", "attention"])):
        (tmp_path / f"mix{index}").mkdir()
        mixed = repository(tmp_path / f"mix{index}", "llama", num_hidden_layers=3, mixer=mixer)
        folders.append(mixed.rename(mixed.with_name(f"mix{index}")))
    plugin.unlink()
    done = python(STRANGER, *map(str, folders), installed=False)
    check(done, [folder.name for folder in folders])


def test_a_plugin_that_reads_a_file_beside_it_is_refused(tmp_path: Path) -> None:
    plugin = tmp_path / "reading_mean.py"
    (tmp_path / "table.txt").write_text("1")
    read = "from pathlib import Path\nTABLE = (Path(__file__).parent / 'table.txt').read_text()\n"
    text = PLUGIN.replace("running_mean_of_a_test", "reading_mean_of_a_test")
    plugin.write_text(text.replace("from torch import Tensor\n", f"from torch import Tensor\n{read}", 1))
    load_plugin(plugin)
    with pytest.raises(ConfigError, match=r"reading_mean\.py: reads table\.txt next to it, which a model that brings"):
        repository(tmp_path, "llama", mixer=["reading_mean_of_a_test", "attention"])


PLUGIN = '''
"""A mixer in a file of its own."""

from torch import Tensor

from hf_arch.layers.mixers.base import MixerCost, RecurrentMixer
from hf_arch.core.options import Options, options
from hf_arch.core.registry import MIXERS


@options
class RunningMeanOptions(Options):
    scale: float = 1.0


@MIXERS.register("running_mean_of_a_test")
class RunningMean(RecurrentMixer):
    Options = RunningMeanOptions
    label = "Mean"

    def mix(self, x: Tensor, layout, state, **context) -> Tensor:
        before = state.recurrent()
        total = x.cumsum(1) if before is None else x.cumsum(1) + before
        state.write_recurrent(total[:, -1:])
        return total * self.options.scale

    def cost(self, seq_len: int) -> MixerCost:
        return MixerCost()
'''


def test_a_bundle_holds_only_what_its_model_needs():
    files = set(bundle(hf_arch.tiny_config("gpt2")).files)
    assert "modeling_hfa_gpt2.py" in files and "layers_mixers_attention.py" in files
    unneeded = ("layers_mixers_gla", "ops_selective", "models_architectures_gla", "models_cost")
    assert not any(name.startswith(unneeded) for name in files)
    assert "deferred.py" not in files and "hf_arch.py" not in files


def test_what_a_bundle_imports_is_in_it_and_of_the_package_nothing():
    """Every file of every architecture's, each text once: most are the same in all of them."""
    for architecture in hf_arch.list_architectures():
        files = bundle(hf_arch.tiny_config(architecture)).files
        for name, text in files.items():
            for module, wanted in names_and_imports(text)[1]:
                assert wanted <= names_and_imports(files[f"{module}.py"])[0], (architecture, name, module)


@cache
def names_and_imports(text: str) -> tuple[set[str], list[tuple[str, set[str]]]]:
    """What a module defines, and (module, names) of what it takes from those beside it."""
    tree = ast.parse(text)
    defined, imports = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level or (node.module or "").split(".")[0] != "hf_arch"
            if node.level:
                assert node.level == 1 and node.module is not None
                imports.append((node.module, {alias.name for alias in node.names}))
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            defined |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    return defined, imports


def test_the_installed_classes_win_and_copies_name_no_code(tmp_path: Path):
    staged = repository(tmp_path, "gla")
    config = AutoConfig.from_pretrained(staged, trust_remote_code=True)
    assert type(config).__module__ == "hf_arch.models.architectures.gla"
    model = AutoModelForCausalLM.from_pretrained(staged, trust_remote_code=True)
    assert type(model).__module__ == "hf_arch.models.architectures.gla"
    head = AutoModelForSequenceClassification.from_pretrained(staged)
    assert type(head).__module__ == "hf_arch.models.architectures.gla"
    model.save_pretrained(tmp_path / "copy")
    assert "auto_map" not in json.loads((tmp_path / "copy" / "config.json").read_text())
    assert not list((tmp_path / "copy").glob("*.py"))


def test_a_foreign_config_cannot_be_bundled():
    from transformers import LlamaConfig

    with pytest.raises(ConfigError, match="LlamaConfig belongs to no registered architecture"):
        bundle(LlamaConfig())


# What strangers meet who do not trust the code, or have another version; it runs up to its check of versions.
REFUSED = """
import json, sys, traceback
import transformers
from transformers import AutoModelForCausalLM

said = []
for folder, version, trusted in json.loads(sys.argv[1]):
    transformers.__version__ = version
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trusted)
        said.append("")
    except Exception as error:
        said.append("".join(traceback.format_exception_only(error)))
print()  # the question whether the code is trusted ends without one
print(json.dumps(said))
"""


def test_without_trust_no_code_runs_and_another_version_is_refused_in_one_line(tmp_path: Path, python):
    staged = repository(tmp_path, "rwkv7")
    harmful = shutil.copytree(staged, tmp_path / "harmful")
    (harmful / "modeling_hfa_rwkv7.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    supported, version = SUPPORTED["transformers"], transformers.__version__
    others = ("5.20.1", supported.below)
    tries = [(harmful, version, None), *((staged, other, True) for other in (*others, f"{supported.newest}.7"))]
    done = python(REFUSED, json.dumps(tries, default=str), installed=False)
    assert done.returncode == 0, done.stderr
    untrusted, *refused, accepted = json.loads(done.stdout.splitlines()[-1])
    assert "trust_remote_code" in untrusted and not (tmp_path / "ran").exists()
    for other, line in zip(others, refused, strict=True):
        assert line.count("\n") == 1 and line.startswith(
            f"ImportError: this model (code of hf_arch {hf_arch.__version__}) works with transformers"
        )
        assert f"{supported.oldest} to {supported.newest}, and {other} is installed" in line
    assert accepted == ""


def test_the_check_of_versions_comes_before_every_import_of_other_code():
    for name in hf_arch.list_architectures():
        text = bundle(hf_arch.tiny_config(name)).files[f"modeling_hfa_{name}.py"]
        body = [
            node for node in ast.parse(text).body if not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call)
        ]
        body = [node for node in body if getattr(node, "module", "") != "__future__"]
        assert ast.unparse(body[0]) == "from .versions import require_supported_versions", name
        assert ast.unparse(body[1]).startswith("require_supported_versions("), name


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("release", [SUPPORTED["transformers"].oldest, SUPPORTED["transformers"].newest])
def test_every_architecture_loads_in_an_environment_of_only_transformers_and_torch(tmp_path: Path, release: str):
    folders = [repository(tmp_path, name) for name in hf_arch.list_architectures()]
    venv.create(tmp_path / "venv", with_pip=True)
    interpreter = str(tmp_path / "venv" / "bin" / "python")
    from importlib.metadata import version

    pinned = [f"torch=={version('torch').partition('+')[0]}", f"transformers=={release}.*"]
    install = [interpreter, "-m", "pip", "install", "--quiet", *pinned]
    done = subprocess.run(install, capture_output=True, text=True, timeout=1200)
    if done.returncode:
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1][:100]}")
    env = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    listed = subprocess.run([interpreter, "-m", "pip", "list"], capture_output=True, text=True, env=env)
    assert "hf-arch" not in listed.stdout and "hf_arch" not in listed.stdout
    done = subprocess.run(
        [interpreter, "-c", STRANGER, *map(str, folders)], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    check(done, [folder.name for folder in folders])
    assert sys.version_info >= (3, 11)
