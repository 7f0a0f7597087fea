"""Runs the Triton kernels of flash-linear-attention on a CPU, under Triton's interpreter: slow, fp32, tiny sizes.

Import this before anything that imports triton. The interpreter of Triton 3 needs help in four places:
autotuners ask a driver for benchmarks, loop variables must be tensors of the language, masks must be booleans, and
`tl.gather` must not be bound while fla is imported, or it escapes the interpreter.
"""

from __future__ import annotations

import ast
import os

os.environ["TRITON_INTERPRET"] = "1"
os.environ["FLA_USE_COMPILE"] = "0"
os.environ["FLA_CONV_BACKEND"] = "triton"
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.autotuner import Autotuner

Autotuner._bench = lambda self, *args, config=None, **options: [0.0, 0.0, 0.0]


def _visit_for(self, node):
    node = self.generic_visit(node)
    static = isinstance(node.iter, ast.Call) and getattr(node.iter.func, "attr", "") == "static_range"
    if not static and isinstance(node.target, ast.Name):
        name = node.target.id
        convert = ast.parse(f"{name} = interpreter_semantic.to_tensor({name}, False)").body[0]
        node.body.insert(0, ast.copy_location(convert, node))
    return node


interpreter.ASTTransformer.visit_For = _visit_for


def _with_boolean_mask(method, position):
    def call(self, *args):
        if args[position] is not None and args[position].data.dtype != bool:
            args[position].data = args[position].data.astype(bool)
        return method(self, *args)

    return call


_builder = interpreter.InterpreterBuilder
_builder.create_masked_load = _with_boolean_mask(_builder.create_masked_load, 1)
_builder.create_masked_store = _with_boolean_mask(_builder.create_masked_store, 2)

_gather = tl.gather
del tl.gather
import fla.ops  # noqa: E402, F401

tl.gather = _gather
