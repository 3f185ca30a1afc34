"""Encoding in the memory of stores: one launch for what a layer packs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx

from tqchat.kv.codec.base import Block
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.kernels.decode import fine_levels
from tqchat.kv.kernels.device import SIMD_WIDTH, VERIFIED_TOKENS, Kernels, Launch, kernels, run, unused_input
from tqchat.kv.kernels.encode import RESIDENT_SIMDS, EncodePlan, encoding_error, fixed_inputs, plan_for
from tqchat.kv.kernels.source import EncodePart, KernelSpec
from tqchat.kv.kernels.workspace import DONE, ThreadWorkspace
from tqchat.kv.scheme import FINE, FINE_BITS
from tqchat.kv.storage.threads import thread_key
from tqchat.kv.storage.token_store import Taken, TokenStore

MAX_PARTS = 4
"""Most encodings of a launch: keys and values of a layer, raw and fine ones. Kernels get sizes as the strides
of an array, of which MLX passes ten.
"""


class Vectors(NamedTuple):
    """Vectors to be encoded into a store.

    Attributes:
        decoder: The format of fine tokens; ``None`` for raw ones.
    """

    taken: Taken
    decoder: TurboFormat | None
    encoder: TurboFormat
    store: TokenStore

    @property
    def x(self) -> mx.array:
        """The vectors, decoded by plain operations; launches have written all of them."""
        block = self.taken.view()
        return block[0] if self.decoder is None else self.decoder.decode(block)


@dataclass(frozen=True)
class PartPlan:
    """Compile-time parameters of one encoding of a launch.

    Attributes:
        is_fine: Whether the vectors are fine tokens.
        fixed: By the encoding kernel's name of an input, the index among those that the parts share.
    """

    encode: EncodePlan
    is_fine: bool
    fixed: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class InPlacePlan:
    """Compile-time parameters of a launch."""

    parts: tuple[PartPlan, ...]

    @property
    def simds(self) -> int:
        """Simd groups per threadgroup."""
        return min(part.encode.simds for part in self.parts)

    @property
    def spec(self) -> KernelSpec:
        """The kernel's source specification."""
        inputs = ["after", "sizes"]
        parts = []
        for number, part in enumerate(self.parts):
            names = ("fine_words", "fine_gains") if part.is_fine else ("x",)
            own = {name: f"{name}_{number}" for name in names}
            inputs += [*own.values(), f"stored_words_{number}", f"stored_gains_{number}"]
            own |= {name: f"fixed_{index}" for name, index in part.fixed}
            constants = part.encode.constants(self.simds)
            if part.is_fine:
                constants += ("FINE_BITS", FINE_BITS), ("FINE_WORDS", FINE.words_per_vector(part.encode.dim))
            parts.append(EncodePart(part.encode.kernel, part.is_fine, constants, tuple(own.items())))
        fixed = 1 + max(index for part in self.parts for _, index in part.fixed)
        inputs += [f"fixed_{index}" for index in range(fixed)]
        threads = self.simds * SIMD_WIDTH if any(part.encode.tensor_cores for part in self.parts) else 0
        resident = RESIDENT_SIMDS * SIMD_WIDTH
        return KernelSpec(
            "encode_in_place", tuple(inputs), ("done",), (), (), threads, resident, parts=tuple(parts)
        )

    def launch(self, heads: int, tokens: Sequence[int]) -> Launch:
        """Launch parameters.

        Args:
            heads: Of all rows of the batch.
            tokens: Of each part.
        """
        counts = zip(self.parts, tokens, strict=True)
        groups = sum(-(-part.encode.simds_for(heads, count) // self.simds) for part, count in counts)
        threads = self.simds * SIMD_WIDTH
        return {**DONE, "grid": (groups * threads, 1, 1), "threadgroup": (threads, 1, 1)}


class _Launch(NamedTuple):
    """A launch for vectors between some formats.

    Attributes:
        heads: Of all rows of the batch.
        formats: Decoder and encoder of each part, referred to weakly: the encoder keeps this.
        fixed: The arrays that the parts share.
    """

    heads: int
    formats: tuple[tuple[Callable[[], TurboFormat | None], Callable[[], TurboFormat | None]], ...]
    compiled: Callable[..., mx.array]
    fixed: tuple[mx.array, ...]

    def serves(self, vectors: Sequence[Vectors]) -> bool:
        """Whether it is for vectors of these formats and so many heads."""
        if _heads(vectors) != self.heads:
            return False
        return all(
            one.encoder is encoder() and one.decoder is decoder()
            for one, (decoder, encoder) in zip(vectors, self.formats, strict=True)
        )


def _heads(vectors: Sequence[Vectors]) -> int:
    batch, heads, *_ = vectors[0].taken.memory[0].shape
    return batch * heads


def encode_in_place(
    vectors: Sequence[Vectors], workspace: ThreadWorkspace, after: mx.array
) -> mx.array | None:
    """Append vectors to stores, encoded, in the stores' memory and by one launch.

    Args:
        vectors: For different stores, at most ``MAX_PARTS``, of as many heads.
        after: An output of the workspace's launches, after which this one runs.

    Returns:
        The launch's output; ``None`` if it cannot be done, and nothing was appended.
    """
    launch = _launch(vectors, after)
    if launch is None or not all(one.store.make_slots(one.taken.tokens, workspace) for one in vectors):
        return None
    arrays: list[mx.array] = []
    rooms = []
    for taken, _, _, store in vectors:
        arrays += taken.memory
        arrays += store.memory
        rooms += [taken.capacity | taken.start << 32, store.capacity | store.end << 32]
    done = launch.compiled(after, _sizes(thread_key(), _strides(vectors, rooms)), *arrays, *launch.fixed)
    for one in vectors:
        one.store.add_written(one.taken.tokens, done, workspace)
    return done


def _strides(vectors: Sequence[Vectors], rooms: list[int]) -> tuple[int, ...]:
    """The sizes that ``source._in_place_body`` reads."""
    tokens = [one.taken.tokens for one in vectors]
    if len(tokens) % 2:
        tokens.append(0)
    return (*rooms, *(first | second << 32 for first, second in zip(tokens[::2], tokens[1::2], strict=True)))


@lru_cache(maxsize=16)
def _sizes(thread: object, strides: tuple[int, ...]) -> mx.array:
    """An array with these strides, which kernels get by value; layers of the same lengths share it."""
    return mx.as_strided(unused_input(mx.float32), [1] * len(strides), strides)


def _launch(vectors: Sequence[Vectors], after: mx.array) -> _Launch | None:
    """The launch for vectors like these, kept with the first format; ``None`` where no kernel may be used.

    The first use of each kernel is verified now.
    """
    key = thread_key(), tuple([(one.taken.tokens, one.taken.memory[0].dtype) for one in vectors])
    launch: _Launch | None = vectors[0].encoder.launches.get(key)
    if launch is not None and launch.serves(vectors):
        return launch
    device_kernels = kernels()
    if device_kernels is None:
        return None
    mx.eval(after)  # it may write the vectors, which the verification reads
    for tensor_cores in (device_kernels.tensor_cores, False):
        planned = _plan(vectors, tensor_cores)
        if planned is not None and _is_trusted(device_kernels, *planned, vectors):
            launch = _launch_of(*planned, vectors)
            vectors[0].encoder.keep_launch(key, launch)
            return launch
    return None


def _plan(vectors: Sequence[Vectors], tensor_cores: bool) -> tuple[InPlacePlan, tuple[mx.array, ...]] | None:
    """The kernel for vectors like these and the inputs that its parts share; ``None`` where none applies."""
    shared: dict[int, tuple[int, mx.array]] = {}
    parts = []
    for taken, decoder, encoder, _ in vectors:
        memory = taken.memory[0]
        shape = *memory.shape[:2], taken.tokens, encoder.rotation.head_dim
        dtype = memory.dtype if decoder is None else mx.float32
        plan = plan_for(encoder, shape, dtype, tensor_cores)
        if plan is None:
            return None
        fixed = fixed_inputs(plan, encoder)
        if decoder is not None:
            fixed["levels"] = fine_levels()
        indices = ((name, shared.setdefault(id(x), (len(shared), x))[0]) for name, x in fixed.items())
        parts.append(PartPlan(plan, decoder is not None, tuple(indices)))
    return InPlacePlan(tuple(parts)), tuple(array for _, array in shared.values())


def _launch_of(plan: InPlacePlan, fixed: tuple[mx.array, ...], vectors: Sequence[Vectors]) -> _Launch:
    heads = _heads(vectors)
    compiled = _compiled(thread_key(), plan, heads, tuple(one.taken.tokens for one in vectors))
    formats = tuple((_weakly(one.decoder), _weakly(one.encoder)) for one in vectors)
    return _Launch(heads, formats, compiled, fixed)


def _weakly(format_: TurboFormat | None) -> Callable[[], TurboFormat | None]:
    return (lambda: None) if format_ is None else weakref.ref(format_)


@lru_cache(maxsize=64)
def _compiled(
    thread: object, plan: InPlacePlan, heads: int, tokens: tuple[int, ...]
) -> Callable[..., mx.array]:
    """The launch as a compiled function of its arrays; MLX traces it once per thread, plan and lengths."""

    def launch(*inputs: mx.array) -> mx.array:
        device_kernels = kernels()
        assert device_kernels is not None
        return run(device_kernels.compiled(plan.spec), inputs, plan.launch(heads, tokens))[0]

    return mx.compile(launch)


def _is_trusted(
    device_kernels: Kernels, plan: InPlacePlan, fixed: tuple[mx.array, ...], vectors: Sequence[Vectors]
) -> bool:
    """Whether the kernel may be used; on first use it is compared with plain operations."""
    if plan not in device_kernels.trusted and plan not in device_kernels.refused:
        first = [one._replace(taken=one.taken.first(VERIFIED_TOKENS)) for one in vectors]

        def inputs() -> list[mx.array]:
            arrays = [array for one in first for array in one.taken.view()]
            for one in first:
                arrays += [*one.encoder.shared.values(), *one.encoder.fitted.values()]
            return arrays

        def error(expected: list[Block], found: list[Block]) -> str | None:
            pairs = zip(first, expected, found, strict=True)
            problems = (encoding_error(one.encoder, one.x, a, b) for one, a, b in pairs)
            return next((problem for problem in problems if problem is not None), None)

        device_kernels.verify_first_use(
            plan,
            inputs,
            lambda: [one.encoder.encode(one.x) for one in first],
            lambda: _candidate(plan, fixed, first),
            error,
        )
    return plan in device_kernels.trusted


def _candidate(plan: InPlacePlan, fixed: tuple[mx.array, ...], vectors: Sequence[Vectors]) -> list[Block]:
    """The vectors as the kernel encodes them, in arrays with three tokens of room around them."""
    arrays: list[mx.array] = []
    rooms, found = [], []
    for part, (taken, *_) in zip(plan.parts, vectors, strict=True):
        batch, heads, *_ = taken.memory[0].shape
        capacity = taken.tokens + 6
        kinds = (part.encode.words, mx.uint32), (1, mx.float16)
        stored = [mx.zeros((batch, heads, capacity, width), dtype) for width, dtype in kinds]
        arrays += [*taken.memory, *stored]
        rooms += [taken.capacity | taken.start << 32, capacity | 3 << 32]
        found.append(tuple(array[:, :, 3 : 3 + taken.tokens] for array in stored))
    mx.eval(arrays)
    launch = _launch_of(plan, fixed, vectors)
    sizes = _sizes(thread_key(), _strides(vectors, rooms))
    mx.eval(launch.compiled(unused_input(mx.float32), sizes, *arrays, *fixed))
    return found
