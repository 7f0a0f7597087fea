"""The contract of every recurrence: declared once, in four forms behind one signature.

A recurrence is a dataclass whose fields are its arguments, with shapes as text, and whose methods are its forms:

    @dataclass(eq=False, repr=False)
    class RunningSum(Call[Tensor]):
        '''S_t = exp(g_t) S_{t-1} + x_t'''
        x: Annotated[Tensor, "B T D", "inputs"]
        g: Annotated[Tensor | None, "B T D", LOG_DECAY] = None
        states, output = ("B D",), "x"

        def naive(self): ...    # the reference, one token after another: any device, any derivative
        def chunk(self): ...    # the fast form of the whole row, with its gradient
        def step(self): ...     # one token; the naive form where there is none
        def kernel(self): ...   # flash-linear-attention's kernel, where `covers()`; optional

    running_sum = Recurrence(RunningSum, "running_sum")

`running_sum(x, g, initial_state=..., output_final_state=..., segment_ids=...)` checks the shapes and picks the form:
the step for one token, the kernel where the tensors' device has one, else the chunk form. `running_sum.naive(...)`,
`.chunk`, `.step` and `.kernel` name a form and take the same arguments. All return (output, final state or None).

What all have in common is here: shapes and their errors, the dtype of states (fp32; fp64 as soon as a tensor is),
initial and final states, autocast off, and documents: the state starts anew where `segment_ids` changes.

Legend: B batch, T time, H heads, K key dim, V value dim, N state, M slots, D and E channels, P head dim, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from inspect import signature
from typing import Annotated, Any, ClassVar, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from .backend import run_fla, use_fla
from .chunks import chunk_length, to_chunks
from .documents import document_keep
from .precision import state_dtype, without_autocast
from .shapes import OPTION, Argument, Shape, binds, declared_arguments, parse_shapes, written

LOG_DECAY = "log decay <= 0"
MIN_SIDE, MAX_SIDE = 16, 256
P = ParamSpec("P")
State = TypeVar("State")


@dataclass(eq=False, repr=False)
class Call(Generic[State]):
    """One call of a recurrence: its arguments, checked, and what all forms need of them.

    Attributes:
        states: the shape of each tensor of the state; alternatives as in "H | B T H".
        output: the argument that has the dtype of the output.
        sides: the letters that are sides of the kernel's matrix products.
        rounds_fp32: whether the kernel has such products, which round fp32 to TF32.
        sizes: the size of each letter of the shapes.
        dtype: of states and of all arithmetic on them.
        state: the initial state in `dtype`, or None.

    Raises:
        ValueError: a tensor of another shape than declared, or a missing one.
    """

    _: KW_ONLY
    initial_state: Annotated[State | None, OPTION, "belongs to the first document of each row"] = None
    output_final_state: Annotated[bool, OPTION, "whether to return the state after the last token"] = False
    segment_ids: Annotated[Tensor | None, "B T", "documents of packed rows: integers that change where one starts"] = (
        None
    )

    states: ClassVar[tuple[str, ...]]
    output: ClassVar[str]
    sides: ClassVar[str] = "KVMPN"
    rounds_fp32: ClassVar[bool] = True
    arrays: ClassVar[dict[str, Argument]]
    state_shapes: ClassVar[tuple[tuple[Shape, ...], ...]]
    _seen: ClassVar[dict[Any, tuple[dict[str, int], torch.dtype]]]

    def __init_subclass__(cls) -> None:
        arguments = declared_arguments(cls)
        # `segment_ids` last, so that an error names another one
        names = [name for name, argument in arguments.items() if argument.shapes and name != "segment_ids"]
        cls.arrays = {name: arguments[name] for name in (*names, "segment_ids")}
        cls.state_shapes = tuple(parse_shapes(text) for text in getattr(cls, "states", ()))
        cls._seen = {}

    def __post_init__(self) -> None:
        state: Any = self.initial_state
        tensors = (*[getattr(self, name) for name in self.arrays], *_parts(state))
        known = None if torch.compiler.is_dynamo_compiling() else self._remembered(tensors)
        if known is None:
            known = self._check(), state_dtype(*tensors)
        self.sizes, self.dtype = known
        if state is not None:
            state = state.to(self.dtype) if isinstance(state, Tensor) else tuple(x.to(self.dtype) for x in state)
        self.state = state

    def _remembered(self, tensors: tuple[Tensor | None, ...]) -> tuple[dict[str, int], torch.dtype] | None:
        """The sizes and the dtype. A step takes microseconds: what was found right once is not checked again."""
        key = tuple([None if x is None else (x.shape, x.dtype) for x in tensors])
        try:
            known = self._seen.get(key)
        except TypeError:  # sizes that a tracer leaves open are not hashable
            return None
        if known is None:
            if len(self._seen) >= 1024:
                self._seen.clear()
            known = self._seen[key] = self._check(), state_dtype(*tensors)
        return known

    def _check(self) -> dict[str, int]:
        """The sizes of the letters, or an error that names the first tensor of a wrong shape."""
        sizes = {"2": 2}
        for name, (shapes, _, optional) in self.arrays.items():
            x = getattr(self, name)
            if x is None and not optional:
                raise ValueError(f"{name}: None is not allowed; it must be {written(shapes, sizes)}")
            if x is not None and not any(binds(axes, x.shape, sizes) for axes in shapes):
                raise ValueError(f"{name}: shape {tuple(x.shape)} is not allowed; it must be {written(shapes, sizes)}")
        if sizes["T"] == 0:
            raise ValueError(f"{self.output}: 0 tokens are not allowed; it must have at least one")
        parts = _parts(self.initial_state)
        fits = len(parts) == len(self.states) and all(
            any(binds(axes, part.shape, sizes) for axes in shapes)
            for part, shapes in zip(parts, self.state_shapes, strict=True)
        )
        if parts and not fits:
            allowed = " with ".join(written(shapes, sizes) for shapes in self.state_shapes)
            given = ", ".join(str(tuple(part.shape)) for part in parts)
            raise ValueError(f"initial_state: shape {given} is not allowed; it must be {allowed}")
        return sizes

    @property
    def like(self) -> Tensor:
        """The tensor [B, T, ...] whose device decides, and whose dtype the output has."""
        return getattr(self, self.output)

    def keep(self) -> Tensor | None:
        """[B, T], 0 where a document starts and 1 elsewhere, or None for rows of one document."""
        return None if self.segment_ids is None else document_keep(self.segment_ids, self.dtype)

    def empty_state(self) -> Any:
        """The state of a document before its first token: zeros of the declared shapes."""
        shapes = ([self.sizes[axis] for axis in alternatives[0]] for alternatives in self.state_shapes)
        parts = tuple(self.like.new_zeros(shape, dtype=self.dtype) for shape in shapes)
        return parts if len(parts) > 1 else parts[0]

    def start_state(self) -> Any:
        """The initial state, or that of nothing."""
        return self.empty_state() if self.state is None else self.state

    def each_token(
        self, advance: Callable[..., tuple[Tensor, Any]], *arrays: Tensor, num_valid: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """The naive form: one token after another, from an empty state where a document starts.

        Args:
            advance: (state, arrays of token t [B, ...] in `dtype`) to (its output, the next state).
            arrays: [B, T, ...].
            num_valid: [B], the tokens of each row after which its state is wanted; None: all.

        Returns:
            outputs [B, T, ...], and the last state.
        """
        state, empty, keep = self.start_state(), self.empty_state(), self.keep()
        starts = [None] * self.sizes["T"] if keep is None else (keep == 0).unbind(1)
        outputs, final = [], state
        steps = zip(starts, *(x.to(self.dtype).unbind(1) for x in arrays), strict=True)
        for t, (start, *tokens) in enumerate(steps):
            if start is not None:
                state = _where(start, empty, state)
            output, state = advance(state, *tokens)
            outputs.append(output)
            final = state if num_valid is None else _where(t < num_valid, state, final)
        return torch.stack(outputs, 1), final

    def naive(self) -> tuple[Tensor, State]:
        """The recurrence as written in its paper."""
        raise NotImplementedError

    def chunk(self) -> tuple[Tensor, State]:
        """The fast form of the whole row. Outputs before a changed token stay bit-equal."""
        raise NotImplementedError

    def step(self) -> tuple[Tensor, State]:
        """One token; it continues its row, since there is no earlier token to differ from."""
        return self.naive()

    def kernel(self) -> tuple[Tensor, State]:
        """flash-linear-attention's kernel."""
        raise NotImplementedError

    def is_step(self) -> bool:
        """Whether the step is the form to take."""
        return self.sizes["T"] == 1

    def covers(self) -> bool:
        """Whether there is a kernel for such arguments. The kernels' matrix products need sides of 16 at least."""
        sides = (self.sizes[letter] for letter in self.sides if letter in self.sizes)
        return self.has_kernel() and all(MIN_SIDE <= side <= MAX_SIDE and side % 8 == 0 for side in sides)

    @classmethod
    def has_kernel(cls) -> bool:
        return cls.kernel is not Call.kernel

    def on_fla(self, name: str, arrays: dict[str, Any], **options: Any) -> tuple[Tensor, Any]:
        """`backend.run_fla` with the states and documents of this call."""
        return run_fla(name, arrays, self.state, self.output_final_state, self.segment_ids, **options)


@dataclass(eq=False, repr=False)
class ChunkedCall(Call[State]):
    """A call whose chunk form cuts time in chunks of `chunk_size` tokens, a power of two."""

    _: KW_ONLY
    chunk_size: Annotated[int | None, OPTION, "tokens of a chunk in the chunk form, a power of two"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_size is not None:
            chunk_length(1, self.chunk_size)  # also where one token needs no chunk

    def chunk_length(self) -> int:
        """Tokens of a chunk: a power of two, less than `chunk_size` in shorter rows."""
        size = self.default_chunk_size() if self.chunk_size is None else self.chunk_size
        return chunk_length(self.sizes["T"], size)

    def default_chunk_size(self) -> int:
        """What `chunk_size` is if None."""
        return 32

    def keep_chunks(self) -> Tensor | None:
        """`keep` as [N, B, 1, C]."""
        keep = self.keep()
        return None if keep is None else to_chunks(keep.unsqueeze(-1), self.chunk_length(), self.dtype, pad_value=1.0)


class Recurrence(Generic[P, State]):
    """An op over rows of tokens, called with the arguments of its declaration; see the module's docstring."""

    def __init__(self, declaration: Callable[P, Call[State]], name: str):
        self.declaration: Any = declaration
        self.__name__ = self.__qualname__ = name
        self.__module__ = self.declaration.__module__
        self.__signature__ = signature(declaration)
        self.__doc__ = self.declaration.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Tensor, State | None]:
        """The form that suits T and the tensors' device: (output, final state or None)."""
        call = self.declaration(*args, **kwargs)
        if call.is_step():
            return _run(call, call.step)
        return _run(call, call.kernel if use_fla(call.like, call.rounds_fp32) and call.covers() else call.chunk)

    def naive(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Tensor, State | None]:
        """The recurrence as written in its paper, one token after another."""
        call = self.declaration(*args, **kwargs)
        return _run(call, call.naive)

    def chunk(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Tensor, State | None]:
        """The fast form of the whole row in plain torch."""
        call = self.declaration(*args, **kwargs)
        return _run(call, call.chunk)

    def step(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Tensor, State | None]:
        """One token.

        Raises:
            ValueError: for several.
        """
        call = self.declaration(*args, **kwargs)
        if not call.is_step():
            raise ValueError(f"{call.output}: {call.sizes['T']} tokens are not allowed in a step; it must be one")
        return _run(call, call.step)

    def kernel(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Tensor, State | None]:
        """flash-linear-attention's kernel.

        Raises:
            ValueError: where there is none for such arguments.
        """
        call = self.declaration(*args, **kwargs)
        if not call.covers():
            raise ValueError(f"{self.__name__}: flash-linear-attention has no kernel for these arguments")
        return _run(call, call.kernel)

    def __reduce__(self) -> str:
        return self.__name__  # by name, as a function


def default_scale(scale: float | None, q: Tensor) -> float:
    """`scale`, or K^-0.5 for queries [..., K]."""
    return q.shape[-1] ** -0.5 if scale is None else scale


def _run(call: Any, form: Callable[[], tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
    with without_autocast(call.like):
        output, final = form()
    return output.to(call.like.dtype), final if call.output_final_state else None


def _parts(state: Any) -> tuple[Tensor, ...]:
    if state is None:
        return ()
    return (state,) if isinstance(state, Tensor) else tuple(state)


def _where(rows: Tensor, state: Any, other: Any) -> Any:
    """`state` in the rows [B] that are true, else `other`."""
    if isinstance(state, Tensor):
        return torch.where(rows.view(-1, *[1] * (state.dim() - 1)), state, other)
    return tuple(_where(rows, *parts) for parts in zip(state, other, strict=True))
