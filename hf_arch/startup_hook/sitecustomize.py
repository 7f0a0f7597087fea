"""Imported by every Python that `hf-arch with COMMAND` starts: its PYTHONPATH begins with this folder.

Makes our model types known there, and then runs the `sitecustomize` that this one stands before, if there is any.
"""

import importlib.machinery
import importlib.util
import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))
try:
    import hf_arch  # noqa: F401  cheap: it registers once transformers' Auto classes are loaded
except ImportError as _error:
    print(f"hf-arch with: hf_arch models are unknown to {sys.executable} ({_error})", file=sys.stderr)

_others = [_path for _path in sys.path if os.path.abspath(_path or ".") != _here]
_spec = importlib.machinery.PathFinder.find_spec("sitecustomize", _others)
if _spec is not None and _spec.loader is not None:
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["sitecustomize"] = _module
    _spec.loader.exec_module(_module)
