# %% [markdown]
# # How many heads does a small model want?
#
# The width is split among 1, 2 or 8 heads; parameters and data stay the same. Three minutes on two cores. Run it as a
# script (`python docs/examples/attention_heads.py`), or cell by cell in an editor that knows `# %%`.

# %%
import hf_arch.experiments as experiments

RECIPE = {
    "model": {"architecture": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 192},
    "data": {"corpus": "python-docs", "tokenizer": "bpe", "vocab_size": 512, "sequence_length": 64},
    "training": {"max_steps": 60, "per_device_train_batch_size": 16, "learning_rate": 5e-3, "warmup_steps": 10},
    "evaluation": {"final_sequences": 128, "speed": False},
    "experiment": {
        "name": "attention_heads",
        "hypothesis": "heads_1 worse than heads_2; heads_8 within 0.1 of heads_2",
        "seeds": 2,
        "runs": {f"heads_{heads}": {"model": {"num_attention_heads": heads}} for heads in (2, 1, 8)},
    },
}

# %% [markdown]
# `run` trains what is not finished yet, each run in a process of its own, and prints audit and table. A second call
# reads the results from disk.

# %%
study = experiments.run(RECIPE, "results/attention_heads")
print(study.headline)

# %% [markdown]
# The table as a DataFrame, best first. Two seeds give wide intervals: look at the words before the means.

# %%
frame = study.frame()
print(frame[["name", "seeds", "final_val_loss", "final_val_loss_low", "final_val_loss_high", "versus_baseline"]])

# %%
for verdict in study.verdicts:
    print(f"{verdict.outcome}: {verdict.claim} ({verdict.evidence})")

# %% [markdown]
# Every pair with its paired difference; `difference` is None where no seed is shared.

# %%
for pair in study.pairs:
    print(pair.first, "against", pair.second, pair.words)
