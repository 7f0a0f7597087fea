"""What each key of a recipe means, for `tools/recipe_page.py`: (meaning, unit, an example as YAML).

Names, types and defaults are taken from the code. A key without an entry takes its meaning from a line `name: text` of
its section's docstring; a test wants one of the two.
"""

from __future__ import annotations

Entry = tuple[str, str, str]

MODEL: dict[str, Entry] = {
    "architecture": ("which architecture; the other keys change its config", "", "gla"),
    "plugins": ("your own files that register parts; paths from the recipe, else from here", "", "[mine.py]"),
    "vocab_size": ("entries of the vocabulary; by default those of the tokenizer", "entries", "4096"),
    "hidden_size": ("width of the residual stream", "channels", "256"),
    "num_hidden_layers": ("number of blocks", "layers", "6"),
    "num_attention_heads": ("heads of the mixers", "heads", "4"),
    "num_key_value_heads": ("heads of keys and values; null: as many as heads", "heads", "2"),
    "head_dim": ("width of a head; null: hidden_size / num_attention_heads", "channels", "64"),
    "intermediate_size": ("width of the FFN; null: the FFN's own rule", "channels", "688"),
    "intermediate_multiple_of": ("to what the width of a GLU is rounded up", "channels", "64"),
    "max_position_embeddings": ("longest context; by default the length of the rows", "tokens", "2048"),
    "mixer": ("token mixer, or a pattern over the layers", "", "[gla, gla, gla, attention]"),
    "ffn": ("feed-forward, or a pattern over the layers", "", "{type: mlp}"),
    "stream": ("how sublayers read from and write to the residual stream", "", "add"),
    "depth": ("which layers run how often", "", "plain"),
    "embeddings": ("embeddings besides the token embedding", "", "[]"),
    "sites": ("modules at named places of the block", "", "[]"),
    "losses": ("auxiliary losses, added in training alone", "", "[]"),
    "norm": ("normalisation", "", "layernorm"),
    "norm_position": ("where it stands in the block: pre, post or sandwich; or a pattern over the layers", "", "pre"),
    "norm_eps": ("what is added below its root", "", "1.0e-5"),
    "embedding_norm": ("a norm right after the embeddings", "", "true"),
    "final_norm": ("a norm before the head; null: where the last block does not end with one", "", "true"),
    "position": ("how attention learns of positions", "", "rope"),
    "rope_parameters": ("of RoPE, as in transformers", "", "{rope_type: default, rope_theta: 500000.0}"),
    "hidden_act": ("activation of the FFN", "", "silu"),
    "attention_bias": ("biases of the mixers' projections", "", "false"),
    "mlp_bias": ("biases of the FFN", "", "false"),
    "qk_norm": ("a norm on queries and keys of attention", "", "true"),
    "sliding_window": ("how far attention looks back, its own token included; null: to the start", "tokens", "1024"),
    "attn_logit_softcapping": ("soft cap of attention's scores", "", "50.0"),
    "final_logit_softcapping": ("soft cap of the logits", "", "30.0"),
    "embedding_multiplier": ("factor of the embeddings", "", "12.0"),
    "residual_multiplier": ("factor of what a sublayer writes", "", "0.22"),
    "logits_scaling": ("what the logits are divided by", "", "8.0"),
    "branch_scales": ("factors of mixer and FFN, a pair a layer; a control of comparisons", "", "null"),
    "embedding_dropout": ("dropout of the embeddings", "probability", "0.1"),
    "residual_dropout": ("dropout of what a sublayer writes", "probability", "0.1"),
    "attention_dropout": ("dropout of attention's weights", "probability", "0.1"),
    "classifier_dropout": ("dropout of the token-classification head", "probability", "0.1"),
    "init": ("whose initial values: official, fla or transformers; null: the component's own", "", "official"),
    "initializer_range": ("standard deviation of normal initial values", "", "0.02"),
    "rescale_residual_init": ("divide that of what writes to the stream by the root of the sublayers", "", "true"),
    "loss_chunk_size": (
        "tokens whose logits are held at once; null: by the vocabulary, 0: all",
        "tokens",
        "1024",
    ),
    "max_logit_penalty": ("pull of each token's largest logit towards 0", "", "1.0e-4"),
    "parametrization": ("what changes with width and depth", "", "mup"),
    "use_cache": ("whether a forward pass gives a cache", "", "true"),
    "tie_word_embeddings": ("head and embedding share their weights", "", "true"),
    "pad_token_id": ("of padding; by default the tokenizer's", "id", "0"),
    "bos_token_id": ("of the start of a text; by default the tokenizer's", "id", "1"),
    "eos_token_id": ("of its end; by default the tokenizer's", "id", "1"),
}

DATA: dict[str, Entry] = {
    "corpus": ("a known corpus, a path or glob of text files, or a folder of prepared shards", "", "shakespeare"),
    "tokenizer": ("char, byte, bpe (made from the train split), a path or a Hub id", "", "bpe"),
    "vocab_size": ("size of a bpe that is trained here, special tokens included", "entries", "4096"),
    "sequence_length": ("length of a row", "tokens", "256"),
    "isolate_documents": ("documents in one row do not see each other", "", "true"),
    "text_column": ("column of jsonl and parquet rows that holds the text", "", "text"),
    "validation_fraction": ("share of local text that is held out at its end", "share", "0.1"),
    "max_train_tokens": ("take only so many of the train split", "tokens", "1000000"),
    "max_validation_tokens": ("take only so many of the held-out split", "tokens", "100000"),
    "mixture": ("corpora and their weights, mixed row by row", "", "{shakespeare: 3, python-docs: 1}"),
}

PROBE: dict[str, Entry] = {
    "task": ("which synthetic task (`hf-arch list --probes`)", "", "mqar"),
    "setting": ("cpu, paper, or a setting by its source", "", "cpu"),
    "options": ("options of the generator", "", "{}"),
    "stop_accuracy": ("share of right answers above which training ends; null: as the source does", "share", "0.99"),
}

EVALUATION: dict[str, Entry] = {
    "sequences": ("rows scored at each validation; null: all", "rows", "256"),
    "final_sequences": ("rows scored after training; null: all", "rows", "1024"),
    "prompt": ("what the sample of the run continues; empty: the start of the validation text", "", "'ROMEO: '"),
    "new_tokens": ("length of the sample", "tokens", "64"),
    "temperature": ("of the sample; 0 takes the likeliest token", "", "0.8"),
    "top_k": ("sample from so many likeliest tokens; 0: all", "tokens", "50"),
    "speed": ("measure prefill and decoding after training", "", "true"),
    "speed_tokens": ("prompt and decoded tokens of that measurement", "tokens", "64"),
    "lengths": ("lengths of context at which the loss by position is measured", "tokens", "[128, 512]"),
    "corpora": ("other corpora on whose held-out text the loss is measured", "", "[python-docs]"),
    "metrics": ("metrics that a plugin registers, by name or with their options", "", "[]"),
    "rows": ("which validation rows count: all, the even ones (selection) or the odd ones (claim)", "", "all"),
}

EXPERIMENT: dict[str, Entry] = {
    "name": ("of the set, and of its folder", "", "attention"),
    "hypothesis": ("what is claimed, in words that may hold claims about runs", "", "gla better than llama"),
    "description": ("in words, for the report", "", "Which mixer wins?"),
    "seeds": ("a list, how many (3 is 1, 2, 3), or auto: as many as the claims need", "", "3"),
    "matrix": ("dotted keys and the values that every run tries", "", "{training.learning_rate: [1.0e-3, 3.0e-3]}"),
    "match": ("make the runs equal: parameters, flops or state, or the keys below", "", "parameters"),
    "runs": ("names, and what each run changes", "", "{a: {model.norm: rmsnorm}, b: {model.norm: layernorm}}"),
    "scale": ("names of sizes for `--scale`, and what each changes", "", "{cpu: {training: {max_steps: 60}}}"),
    "sets": ("other recipes that are run instead, by paths from this one", "", "[heads.yaml, depth.yaml]"),
    "study": ("what is made of the results besides the comparison: search recommends a smallest model", "", "search"),
    "tune": ("learning rates sampled by Optuna, the keys below", "", "{low: 1.0e-4, high: 1.0e-2, trials: 8}"),
    "learning_rates": ("rates chosen in a sweep of their own: a list, or the keys below", "", "[1.0e-3, 3.0e-3]"),
    "ladder": ("each run at several sizes and budgets, the keys below", "", "{sizes: [1.0e+6, 2.0e+6]}"),
    "metric": (
        "the measured number that is compared; null: the loss, or the accuracy of a probe",
        "",
        "final_val_loss",
    ),
    "columns": ("columns of the report that a plugin registers", "", "[]"),
    "vary": ("the keys that the question is about, where runs change others too", "", "[model.norm]"),
}

MATCH: dict[str, Entry] = {
    "by": ("what is made equal: parameters, training FLOPs a token, or bytes of state", "", "flops"),
    "tolerance": ("largest relative difference that is let through", "share", "0.01"),
    "reference": ("the run that sets the number; null: the first", "", "a"),
    "vary": ("what the other runs change: a whole number of the model section, or auto", "", "auto"),
    "free": ("runs that are left as they are written", "", "[b]"),
}

TUNE: dict[str, Entry] = {
    "low": ("lowest rate", "", "1.0e-4"),
    "high": ("highest rate", "", "1.0e-2"),
    "trials": ("rates sampled for each run", "runs", "8"),
}

LEARNING_RATES: dict[str, Entry] = {
    "rates": ("what every run tries", "", "[1.0e-3, 3.0e-3]"),
    "seeds": ("seeds of the sweep, which the comparison does not use", "seeds", "2"),
    "runs": ("which runs; empty: all", "", "[]"),
}

LADDER: dict[str, Entry] = {
    "sizes": ("parameters without embeddings and head", "parameters", "[1.0e+6, 2.0e+6]"),
    "tokens_per_parameter": ("budgets of each size", "tokens", "[0.5, 1.0, 2.0]"),
    "rule": ("what changes with the size besides the model: fixed, fitted, mup or completep", "", "mup"),
    "trunk": ("the schedule: wsd, or another one that branches, with options as a section", "", "wsd"),
    "decay": ("share of each budget in which the rate falls to 0", "share", "0.2"),
}

TRAINING: dict[str, Entry] = {
    "precision": ("of matrix products; auto measures a CPU and looks at a GPU", "", "bf16"),
    "zero_redundancy": ("processes share the optimiser's states out (ZeRO-1)", "", "true"),
    "max_skipped_steps": ("steps in a row whose loss may be no number", "steps", "3"),
    "max_steps": ("length of training; wins over epochs", "optimiser steps", "1000"),
    "num_train_epochs": ("length of training in passes over the text", "passes", "1.0"),
    "per_device_train_batch_size": ("rows at a time on each device", "rows", "16"),
    "per_device_eval_batch_size": ("the same at validation", "rows", "32"),
    "gradient_accumulation_steps": ("batches in one optimiser step", "batches", "4"),
    "learning_rate": ("highest rate of the schedule", "", "1.0e-3"),
    "lr_scheduler_type": ("shape of the schedule", "", "warmup_stable_decay"),
    "lr_scheduler_kwargs": ("what that shape needs besides", "", "{num_decay_steps: 100}"),
    "warmup_steps": ("steps until the highest rate; below 1 a share of all", "optimiser steps", "100"),
    "optim": ("optimiser; muon takes matrices, and AdamW the rest", "", "muon"),
    "optim_args": ("options of the optimiser as text", "", "momentum=0.95"),
    "weight_decay": ("decoupled, of matrices alone", "", "0.1"),
    "adam_beta1": ("decay of the first moment", "share", "0.9"),
    "adam_beta2": ("decay of the second moment", "share", "0.95"),
    "adam_epsilon": ("what AdamW adds to the root", "", "1.0e-8"),
    "max_grad_norm": ("clipping of the gradients' norm; 0: none", "", "1.0"),
    "label_smoothing_factor": ("share of the target spread over the vocabulary", "share", "0.0"),
    "gradient_checkpointing": ("compute activations again instead of keeping them", "", "true"),
    "torch_compile": ("compile the model", "", "true"),
    "logging_steps": ("how often the loss is logged; below 1 a share of all", "optimiser steps", "10"),
    "eval_steps": ("how often the held-out text is scored; below 1 a share of all", "optimiser steps", "100"),
    "save_steps": ("how often a checkpoint is saved; below 1 a share of all", "optimiser steps", "500"),
    "save_total_limit": ("how many checkpoints are kept", "checkpoints", "2"),
    "report_to": ("trackers besides metrics.jsonl: wandb, trackio, tensorboard", "", "[]"),
    "seed": ("of initial weights and of the order of the data", "", "1"),
    "data_seed": ("of the order alone", "", "1"),
    "dataloader_num_workers": ("processes that read rows", "processes", "2"),
}
