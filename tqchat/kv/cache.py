"""The cache that mlx-lm models are handed for a full-attention layer, whatever the scheme."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import create_attention_mask

from tqchat.kv.attention import attention
from tqchat.kv.scheme import FP16, Scheme, parse_scheme
from tqchat.kv.storage import Side

FEW_ROWS = 16
"""Query tokens up to which attention works from packed storage; more use MLX's fused one, decoding once."""

_RAW_DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


def _dtype_name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


class SchemeCache:
    """Keys and values of one layer under a ``Scheme``; speaks the protocol of mlx-lm's ``KVCache``.

    A prompt's tokens stay raw while it is read. Packing starts with decoding: each single-token step encodes
    whatever has left the tail. What ``update_and_fetch`` returns is always right to attend over; for packed
    tokens it is a lazy decoding that costs nothing when ``attend`` is used instead.

    Args:
        scheme: How to store what leaves the tail.
        dtype: Storage dtype of raw tokens; ``None`` keeps the model's. A 16-bit dtype under a float32 model
            halves the cache.
    """

    def __init__(self, scheme: Scheme = FP16, dtype: mx.Dtype | None = None) -> None:
        self.scheme = scheme
        self.dtype = dtype
        self.offset = 0
        self.key_side = Side(scheme, "key")
        self.value_side = Side(scheme, "value")
        self.query_energy: mx.array | None = None
        self.queries_seen = 0
        self._fetched: tuple[mx.array, mx.array] | None = None

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.key_side, self.value_side

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
        for side, x in zip(self.sides, (keys, values), strict=True):
            side.append(x if self.dtype is None else x.astype(self.dtype))
        self.offset += keys.shape[2]
        if keys.shape[2] == 1:
            self.pack_due()
        fetched = self.key_side.fetch(keys.dtype), self.value_side.fetch(values.dtype)
        self._fetched = fetched if self.packed_tokens else None
        return fetched

    def pack_due(self) -> None:
        """Encode what has left the tail, on both sides."""
        energy = None if self.query_energy is None else self.query_energy / self.queries_seen
        self.key_side.pack_due(energy)
        self.value_side.pack_due()
        if self.key_side.format.fitted or self.key_side.spec.kind != "turbo":
            self.query_energy, self.queries_seen = None, 0

    def observe(self, queries: mx.array) -> None:
        """Note how strong the queries' channels are, until the keys' format has been fitted to it.

        Args:
            queries: ``[batch, query_heads, rows, key_dim]``, those that attend to this cache.
        """
        if self.key_side.spec.kind != "turbo" or self.key_side.format.fitted:
            return
        batch, heads = self.key_side.shape
        rows = queries.astype(mx.float32).reshape(batch, heads, -1, self.key_side.head_dim)
        energy = rows.square().sum(axis=2, keepdims=True)
        self.query_energy = energy if self.query_energy is None else self.query_energy + energy
        self.queries_seen += int(rows.shape[2])

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """All tokens decoded, in the storage dtype."""
        keys, values = (side.fetch(side.dtype) for side in self.sides)
        return keys, values

    def can_attend(self, queries: mx.array, keys: mx.array, values: mx.array) -> bool:
        """Whether ``attend`` is attention over exactly these: few queries, and what was fetched last."""
        fetched, self._fetched = self._fetched, None
        if fetched is None or queries.shape[2] > FEW_ROWS:
            return False
        return fetched[0] is keys and fetched[1] is values

    def attend(
        self, queries: mx.array, scale: float, mask: mx.array | str | None, sinks: mx.array | None = None
    ) -> mx.array:
        """Attention straight from packed storage; see ``attention``."""
        return attention(queries, self.key_side, self.value_side, scale, mask, sinks)

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
        self._fetched = None
        return n

    def size(self) -> int:
        return self.offset

    def empty(self) -> bool:
        return self.key_side.head_dim == 0

    @property
    def nbytes(self) -> int:
        """Bytes of this layer's arrays as allocated; rotations, which layers share, are not in it."""
        pending = 0 if self.query_energy is None else self.query_energy.nbytes
        return sum(side.allocated_bytes for side in self.sides) + pending

    @property
    def state(self) -> tuple[str, dict[str, mx.array]]:
        """Everything needed to continue bit for bit: a description and named arrays."""
        description = {
            "scheme": self.scheme.name,
            "tail": self.scheme.tail,
            "sinks": self.scheme.sinks,
            "dtype": None if self.dtype is None else _dtype_name(self.dtype),
            "offset": self.offset,
            "queries_seen": self.queries_seen,
            "sides": [[side.head_dim, _dtype_name(side.dtype)] for side in self.sides],
        }
        arrays = {
            f"{name}_{key}": array
            for name, side in zip(("key", "value"), self.sides, strict=True)
            for key, array in side.arrays().items()
        }
        if self.query_energy is not None:
            arrays["query_energy"] = self.query_energy
        return json.dumps(description), arrays

    @state.setter
    def state(self, state: tuple[str, dict[str, mx.array]]) -> None:
        text, arrays = state
        told: dict[str, Any] = json.loads(text)
        named = parse_scheme(told["scheme"])
        scheme = Scheme(named.name, named.key, named.value, int(told["tail"]), int(told["sinks"]))
        SchemeCache.__init__(self, scheme, None if told["dtype"] is None else _RAW_DTYPES[told["dtype"]])
        for name, side, (head_dim, dtype) in zip(("key", "value"), self.sides, told["sides"], strict=True):
            own = {
                k.removeprefix(f"{name}_"): v for k, v in (arrays or {}).items() if k.startswith(f"{name}_")
            }
            side.restore(own, int(head_dim), _RAW_DTYPES[dtype])
        self.query_energy = (arrays or {}).get("query_energy")
        self.queries_seen = int(told["queries_seen"])
        self.offset = int(told["offset"])
        if any(side.length != self.offset for side in self.sides):
            raise ValueError("The arrays do not hold as many tokens as the cache says.")

    @classmethod
    def from_state(cls, state: tuple[str, dict[str, mx.array]]) -> SchemeCache:
        cache = cls.__new__(cls)
        cache.state = state
        return cache

    def __deepcopy__(self, memo: dict[int, Any]) -> SchemeCache:
        # A dtype cannot be copied, and rotations should stay shared.
        return SchemeCache.from_state(self.state)
