"""Whether this is the installed package, or a copy of its files that came with a model (`hf-arch export --format hub`).

Several copies, of different versions, may be in one process, together with the package: what is entered into
transformers' own tables must then not collide.
"""

BUNDLED = __name__.startswith("transformers_modules.")
