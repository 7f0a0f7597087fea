"""A GGUF file in llama.cpp itself (the prebuilt binary of the npm package node-llama-cpp): the same greedy tokens."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from hf_arch.checkpoints.checkpoint import load_ours
from hf_arch.data.tokenizer import build_tokenizer
from hf_arch.hub.export import export_gguf

from .conftest import save_tiny

GREEDY = """
import {getLlama} from "node-llama-cpp";
const [file, prompt, count] = [process.argv[2], JSON.parse(process.argv[3]), Number(process.argv[4])];
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({contextSize: 128});
const tokens = [];
for await (const token of context.getSequence().evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
  tokens.push(token);
  if (tokens.length >= count) break;
}
console.log(JSON.stringify(tokens));
process.exit(0);
"""


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm to fetch llama.cpp")
def test_llama_cpp_writes_the_same_greedy_tokens(tmp_path: Path):
    pytest.importorskip("gguf", reason="gguf is not installed")
    install = ["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(tmp_path)]
    packages = ["node-llama-cpp@3", "@node-llama-cpp/linux-x64@3"]
    done = subprocess.run([*install, *packages], capture_output=True, text=True, timeout=280)
    if done.returncode:
        pytest.skip(f"llama.cpp cannot be fetched: {done.stderr.strip()[-200:]}")
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 128}
    source = save_tiny(tmp_path / "model", "llama", vocab_size=300, qk_norm=False, **sizes)
    build_tokenizer("bpe", 300, lambda: ["to be, or not to be, that is the question "] * 9).save_pretrained(source)
    file = export_gguf(source, tmp_path / "model.gguf")
    prompt, count = [10, 20, 30, 40, 50], 20
    ours = load_ours(source).generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None)
    (tmp_path / "greedy.mjs").write_text(GREEDY)
    command = ["node", str(tmp_path / "greedy.mjs"), str(file), json.dumps(prompt), str(count)]
    theirs = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert theirs.returncode == 0, theirs.stderr
    assert json.loads(theirs.stdout) == ours[0, len(prompt) :].tolist()
