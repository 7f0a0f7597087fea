"""hf_arch: a Hugging Face plugin to invent, ablate and compare language-model architectures."""

__version__ = "0.1.0.dev0"
