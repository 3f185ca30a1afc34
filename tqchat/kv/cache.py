"""The cache that mlx-lm models are handed for a full-attention layer, whatever the scheme."""

from __future__ import annotations

import json
import weakref
from functools import lru_cache
from threading import get_ident
from typing import Any, ClassVar, Self

import mlx.core as mx
from mlx_lm.models.cache import create_attention_mask

from tqchat.kv.attention.reference import attention
from tqchat.kv.codec.fitting import Seen
from tqchat.kv.codec.rope import Rope
from tqchat.kv.kernels.fused import FusedAttention
from tqchat.kv.kernels.launch import Exchange
from tqchat.kv.scheme import FP16, Scheme, parse_scheme
from tqchat.kv.storage.side import Side

FEW_ROWS = 16
"""Query tokens of a step of decoding, draft tokens among them: more are a prompt."""

_RAW_DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


def _dtype_name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


_owners: weakref.WeakValueDictionary[int, SchemeCache] = weakref.WeakValueDictionary()


def owner(keys: mx.array, values: mx.array) -> SchemeCache | None:
    """The cache that fetched these last, if one did."""
    found = _owners.get(id(keys))
    return found if found is not None and found.fetched(keys, values) else None


def _attends_packed(rows: int) -> bool:
    """Whether attention of so many query tokens works from packed storage.

    For more, a GPU decodes a layer's history once and uses MLX's fused attention. On a CPU that is not fused.
    """
    return rows <= FEW_ROWS or mx.default_device() == mx.cpu


@lru_cache(maxsize=8)
def _nan(dtype: mx.Dtype) -> mx.array:
    array = mx.full((1, 1, 1, 1), mx.nan, dtype=dtype)
    mx.eval(array)
    return array


LAST_STAND_INS = 8
"""Of those that are alike, how many are kept: windows and full layers of a model take turns."""


class _StandIns:
    """Keys and values that are not a number anywhere, so that no use of them goes unseen. For one thread:
    another one's arrays cannot be waited for.
    """

    def __init__(
        self, thread: int, heads: tuple[int, int], dims: tuple[int, int], dtypes: tuple[mx.Dtype, mx.Dtype]
    ) -> None:
        self._parts = tuple((_nan(dtype), heads, dim) for dim, dtype in zip(dims, dtypes, strict=True))
        # The same ones for all layers of a step that hold as many tokens.
        self.of = lru_cache(maxsize=LAST_STAND_INS)(self._make)

    def _make(self, tokens: int) -> tuple[mx.array, mx.array]:
        """Those of so many tokens."""
        keys, values = (mx.broadcast_to(nan, (*heads, tokens, dim)) for nan, heads, dim in self._parts)
        return keys, values


_stand_ins = lru_cache(maxsize=8)(_StandIns)


class SchemeCache:
    """Keys and values of one layer under a ``Scheme``; speaks the protocol of mlx-lm's ``KVCache``.

    A prompt's tokens stay raw while it is read, unless ``packs_prompts`` is set: then each chunk is packed
    once it has been attended to. Otherwise packing starts with decoding: each single-token step encodes
    whatever has left the tail. Its own attention still goes over the tokens as they were, so that nothing
    waits for the encoding: it is computed with the next step. What ``update_and_fetch`` returns is always
    right to attend over; for packed tokens it is a lazy decoding that costs nothing when ``attend`` is used
    instead.

    Even to describe that decoding takes longer than a small model's step on a GPU. With ``stands_in`` set,
    what is returned once tokens are packed only has the right shape: for models that hand it to the routed
    attention and do nothing else with it (``only_attends`` finds out).

    Args:
        scheme: How to store what leaves the tail.
        dtype: Storage dtype of raw tokens; ``None`` keeps the model's. A 16-bit dtype under a float32 model
            halves the cache.
    """

    is_routed: ClassVar[bool] = False
    """Whether mlx-lm's attention is routed to caches now."""

    def __init__(self, scheme: Scheme = FP16, dtype: mx.Dtype | None = None) -> None:
        self.scheme = scheme
        self.dtype = dtype
        self.offset = 0
        self.key_side = Side(scheme, "key")
        self.value_side = Side(scheme, "value")
        self.query_energy: mx.array | None = None
        self.queries_seen = 0
        self.rope: Rope | None = None
        self.packs_prompts = False
        self.stands_in = False
        self._packs_later = self._attends = self._is_shared = False
        self._before: tuple[Side, Side] | None = None
        self._fused = FusedAttention()
        self._dtypes: tuple[mx.Dtype, mx.Dtype] | None = None
        self._stand_ins: _StandIns | None = None
        self._stood_in: tuple[mx.array, mx.array] | None = None
        self._fetched: tuple[weakref.ref[mx.array], weakref.ref[mx.array]] | None = None
        self._fetched_packed = False

    def share(self, exchange: Exchange) -> None:
        """Use this for kernels' launches, as the other layers of a model's cache do."""
        self._fused.exchange = exchange

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.key_side, self.value_side

    @property
    def is_due(self) -> bool:
        """Whether enough has left the tail to be packed."""
        return self.key_side.is_due or self.value_side.is_due

    @property
    def packed_tokens(self) -> int:
        """Tokens that are packed on at least one side."""
        return max(side.packed.length for side in self.sides)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add tokens and return all of them, decoded.

        Args:
            keys: ``[batch, heads, tokens, key_dim]``.
            values: ``[batch, heads, tokens, value_dim]``.
        """
        count = keys.shape[2]
        if not count:
            return self.keys_and_values() if self.key_side.length else (keys, values)
        self._before = None
        self._attends = self._attends and _attends_packed(count)
        owed, self._packs_later = self._packs_later, self.packs_prompts and count > 1
        dtype = self.dtype
        self.key_side.append(keys if dtype is None else keys.astype(dtype))
        self.value_side.append(values if dtype is None else values.astype(dtype))
        self.offset += count
        dtypes = keys.dtype, values.dtype
        if dtypes != self._dtypes:
            self._dtypes, self._stand_ins = dtypes, None
        if count > 1 or not self.is_due:
            return self.keys_and_values()
        if self.stands_in and self.is_routed and self.packed_tokens and not owed:
            # Nobody but the routed attention looks at these tokens, and it says when it has.
            self._packs_later = True
            return self.keys_and_values()
        before = self.key_side.snapshot(), self.value_side.snapshot()
        self.pack_due()
        self._before = before
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """All tokens decoded, as the model was given them last.

        Layers that share this layer's keys and values (Gemma 3n) ask for it, and attend from packed storage.
        """
        keys, values = self._before or (self.key_side, self.value_side)
        packed = self._fetched_packed = keys.packed.length > 0 or values.packed.length > 0
        if packed and self.stands_in and self.is_routed:
            if self._stand_ins is None:
                dims = keys.head_dim, values.head_dim
                self._stand_ins = _stand_ins(get_ident(), keys.shape, dims, self._fetched_dtypes)
            self._attends = False
            # Nothing came from what was fetched before; it may go without a word.
            self._fetched = None
            self._stood_in = self._stand_ins.of(keys.length)
            return self._stood_in
        # What was attended to last time, and nothing else, nobody will evaluate this time.
        fetched = self.decoded(keep=self._attends and not self._is_shared)
        _owners[id(fetched[0])] = self
        self._attends = False
        self._stood_in = None
        # Weakly: a model whose attention is not routed evaluates them, and they would double the cache.
        self._fetched = weakref.ref(fetched[0], self._let_go), weakref.ref(fetched[1])
        return fetched

    def decoded(self, keep: bool = False) -> tuple[mx.array, mx.array]:
        """All tokens as ``keys_and_values`` gives them, never a stand-in; ``keep`` is ``Side.fetch``'s."""
        keys, values = self._before or self.sides
        return keys.fetch(self._fetched_dtypes[0], keep), values.fetch(self._fetched_dtypes[1], keep)

    @property
    def _fetched_dtypes(self) -> tuple[mx.Dtype, mx.Dtype]:
        return self._dtypes or (self.key_side.dtype, self.value_side.dtype)

    def evaluated(self) -> None:
        """Note that other layers are handed what this one fetched, and evaluate it (Gemma 4)."""
        self._is_shared = True
        for side in self.sides:
            side.forget_decoded()

    def _let_go(self, dead: weakref.ref[mx.array]) -> None:
        """Nobody can attend any more to what was fetched, so what it came from may go as well."""
        if self._fetched is not None and self._fetched[0] is dead:
            self._before = None

    def take_over(self, old: SchemeCache) -> None:
        """Hold what another cache holds, decoded where this one's scheme stores it differently."""
        self.offset, self._dtypes = old.offset, old._dtypes
        self.query_energy, self.queries_seen, self.rope = old.query_energy, old.queries_seen, old.rope
        self.packs_prompts, self.stands_in = old.packs_prompts, old.stands_in
        same_parts = (old.scheme.tail, old.scheme.sinks) == (self.scheme.tail, self.scheme.sinks)
        for target, source in zip(self.sides, old.sides, strict=True):
            if same_parts and source.spec == target.spec:
                target.restore(source.arrays(), source.head_dim, source.dtype)
            elif source.length:
                target.append(source.fetch(source.dtype))

    def pack_due(self) -> None:
        """Encode what has left the tail, on both sides."""
        self._before = None
        energy = None if self.query_energy is None else self.query_energy / self.queries_seen
        self.key_side.pack_due(Seen(energy, self.queries_seen, self.rope, self.offset - self.key_side.length))
        self.value_side.pack_due()
        if not self._is_unfitted:
            self.query_energy, self.queries_seen = None, 0

    def observe(self, queries: mx.array) -> None:
        """Note how strong the queries' channels are, until the keys' format has been fitted to it.

        Args:
            queries: ``[batch, query_heads, rows, key_dim]``, those that attend to this cache.
                Rows that are not finite are left out.
        """
        if not self._is_unfitted:
            return
        batch, heads = self.key_side.shape
        rows = queries.astype(mx.float32).reshape(batch, heads, -1, self.key_side.head_dim)
        squares = rows.square()
        squares = mx.where(mx.isfinite(squares.sum(axis=-1, keepdims=True)), squares, 0)
        energy = squares.sum(axis=2, keepdims=True)
        self.query_energy = energy if self.query_energy is None else self.query_energy + energy
        self.queries_seen += int(rows.shape[2])

    @property
    def _is_unfitted(self) -> bool:
        """Whether keys are still to be fitted, once the first of them is packed."""
        return self.key_side.spec.kind != "raw" and not self.key_side.format.fitted

    def fetched(self, keys: mx.array, values: mx.array) -> bool:
        """Whether these are what was fetched last, untouched."""
        if self._stood_in is not None:
            return self._stood_in[0] is keys and self._stood_in[1] is values
        last = self._fetched
        return last is not None and last[0]() is keys and last[1]() is values

    def can_attend(self, queries: mx.array, keys: mx.array, values: mx.array) -> bool:
        """Whether ``attend`` is attention over exactly these: few queries, and what was fetched last."""
        return self._fetched_packed and self.fetched(keys, values) and _attends_packed(queries.shape[2])

    def attend(
        self, queries: mx.array, scale: float, mask: mx.array | str | None, sinks: mx.array | None = None
    ) -> mx.array:
        """Attention straight from packed storage, to the tokens fetched last; see ``attention``."""
        self._attends = True
        keys, values = self._before or (self.key_side, self.value_side)
        output = self._fused(queries, keys, values, scale, mask, sinks)
        if output is None:
            output = attention(queries, keys, values, scale, mask, sinks)
        self.attended()
        return output

    def attended(self) -> None:
        """Note that the tokens fetched last have been attended to: what waited for that may now be packed."""
        self._before = None
        if self._packs_later:
            self._packs_later = False
            self.pack_due()

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """The mask for ``N`` new tokens, as mlx-lm asks for it."""
        mask: mx.array | str | None = create_attention_mask(
            N, offset=self.offset, return_array=return_array, window_size=window_size
        )
        return mask

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        """Forget the last ``n`` tokens, packed or not; returns how many that were."""
        n = min(self.offset, n)
        for side in self.sides:
            side.trim(n)
        self.offset -= n
        self._stood_in = self._fetched = self._before = None
        return n

    def size(self) -> int:
        return self.offset

    def empty(self) -> bool:
        return self.key_side.head_dim == 0

    @property
    def nbytes(self) -> int:
        """Bytes of this layer's arrays as allocated; rotations, which layers share, are not in it."""
        pending = 0 if self.query_energy is None else self.query_energy.nbytes
        return sum(side.allocated_bytes for side in self.sides) + pending + self._fused.nbytes

    @property
    def state(self) -> tuple[str, dict[str, mx.array]]:
        """Everything needed to continue bit for bit: a description and named arrays."""
        arrays = {
            f"{name}_{key}": array
            for name, side in zip(("key", "value"), self.sides, strict=True)
            for key, array in side.arrays().items()
        }
        if self.query_energy is not None:
            arrays["query_energy"] = self.query_energy
        return json.dumps(self._description()), arrays

    @state.setter
    def state(self, state: tuple[str, dict[str, mx.array]]) -> None:
        text, arrays = state
        told: dict[str, Any] = json.loads(text)
        named = parse_scheme(told["scheme"])
        scheme = Scheme(named.name, named.key, named.value, int(told["tail"]), int(told["sinks"]))
        self._begin(told, scheme, None if told["dtype"] is None else _RAW_DTYPES[told["dtype"]])
        for name, side, (head_dim, dtype) in zip(("key", "value"), self.sides, told["sides"], strict=True):
            own = {
                k.removeprefix(f"{name}_"): v for k, v in (arrays or {}).items() if k.startswith(f"{name}_")
            }
            side.restore(own, int(head_dim), _RAW_DTYPES[dtype])
        self.query_energy = (arrays or {}).get("query_energy")
        self.queries_seen = int(told["queries_seen"])
        self.rope = None if told["rope"] is None else Rope.from_json(told["rope"])
        self.offset = int(told["offset"])
        if not self._holds_enough():
            raise ValueError("The arrays do not hold as many tokens as the cache says.")

    def _description(self) -> dict[str, Any]:
        return {
            "scheme": self.scheme.name,
            "tail": self.scheme.tail,
            "sinks": self.scheme.sinks,
            "dtype": None if self.dtype is None else _dtype_name(self.dtype),
            "offset": self.offset,
            "queries_seen": self.queries_seen,
            "rope": self.rope.to_json() if self.rope is not None and self._is_unfitted else None,
            "sides": [[side.head_dim, _dtype_name(side.dtype)] for side in self.sides],
        }

    def _begin(self, told: dict[str, Any], scheme: Scheme, dtype: mx.Dtype | None) -> None:
        """Become an empty cache of the kind that a description tells of."""
        SchemeCache.__init__(self, scheme, dtype)

    def _holds_enough(self) -> bool:
        return all(side.length == self.offset for side in self.sides)

    @classmethod
    def from_state(cls, state: tuple[str, dict[str, mx.array]]) -> Self:
        cache = cls.__new__(cls)
        cache.state = state
        return cache

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A dtype cannot be copied, and rotations should stay shared.
        return type(self).from_state(self.state)
