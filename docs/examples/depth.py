# %% [markdown]
# # Deep or wide, at equal parameters?
#
# One, two and four layers; `match` widens or narrows the FFN so that each has the parameters of the middle one within
# one per cent. Three minutes on two cores.

# %%
from pathlib import Path

import hf_arch.experiments as experiments

RECIPE = {
    "model": {"architecture": "gla", "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 192},
    "data": {"corpus": "python-docs", "tokenizer": "bpe", "vocab_size": 512, "sequence_length": 64},
    "training": {"max_steps": 60, "per_device_train_batch_size": 16, "learning_rate": 5e-3, "warmup_steps": 10},
    "evaluation": {"final_sequences": 128, "speed": False},
    "experiment": {
        "name": "depth",
        "hypothesis": "depth_4 better than depth_1",
        "seeds": 2,
        "match": {"by": "parameters", "reference": "depth_2"},
        "runs": {f"depth_{layers}": {"model": {"num_hidden_layers": layers}} for layers in (2, 1, 4)},
    },
}

# %%
study = experiments.run(RECIPE, "results/depth")
print(study.headline)
print(study.frame()[["name", "params_total", "final_val_loss", "versus_baseline"]])

# %% [markdown]
# What the audit found stands at the head of every report, violations first.

# %%
for finding in study.findings:
    print(f"{finding.severity}: {finding.sentence}")

# %% [markdown]
# The curves are in each run's metrics; `load` and `compare` read any folder of results later, without training.

# %%
loaded = experiments.load("results/depth")
for run in loaded.runs:
    losses = [(row["step"], round(row["val_loss"], 3)) for row in run.metrics if "val_loss" in row]
    print(run.label, losses)
assert experiments.compare("results/depth").equals(loaded.frame())

# %%
page = experiments.write_report("results/depth", loaded)
print(page, f"{Path(page).stat().st_size // 1024} KiB")
