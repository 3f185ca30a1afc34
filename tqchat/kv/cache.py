"""The KV cache of a full-attention layer under any scheme, in the protocol of mlx-lm's ``KVCache``."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

import mlx.core as mx
from mlx_lm.models.cache import create_attention_mask

from tqchat.kv import untrusted
from tqchat.kv.attention.reference import attention
from tqchat.kv.attention.row_by_row import attention_by_row
from tqchat.kv.codec.fitting import NO_STATISTICS, QueryStatistics
from tqchat.kv.codec.rope import Rope, release_angles
from tqchat.kv.kernels.device import kernels
from tqchat.kv.kernels.fused import FusedAttention
from tqchat.kv.kernels.launch import NextToken, StepLauncher
from tqchat.kv.kernels.steady import SteadyStep
from tqchat.kv.kernels.workspace import Workspace
from tqchat.kv.scheme import FP16, Scheme
from tqchat.kv.storage.earlier import EarlierSide, EarlierSides
from tqchat.kv.storage.joint_encode import encode_together
from tqchat.kv.storage.joint_fit import Unfitted
from tqchat.kv.storage.observed_queries import NO_QUERIES, ObservedQueries
from tqchat.kv.storage.placeholders import PlaceholderNotAttended, Placeholders, placeholders_for
from tqchat.kv.storage.rounding_history import NO_ROUNDING, Rounding
from tqchat.kv.storage.side import Encoded, Encoding, Side
from tqchat.kv.storage.threads import thread_key

if TYPE_CHECKING:
    from tqchat.kv.attention.routing import Route

MAX_DECODE_ROWS = 16
"""Most query tokens of a decode step, draft tokens included; more are prefill. See ``_is_decode``."""

MAX_VERIFIED_ROWS = 64
"""Most query tokens of a step that counts as speculative decoding because a part of it was trimmed."""

TRANSIENT = (
    "rope",
    "earlier",
    "earlier_balance",
    "route",
    "packs_prompts",
    "uses_placeholders",
    "_dtypes",
    "_step_rows",
)
"""Attributes that are not part of a cache's state and are copied with it."""

ROLES = "key", "value"


def _dtype_name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _due(side: Side, in_prompt: bool) -> Encoded:
    """The encoded tokens that packing leaves, between chunks of a prompt or at other times."""
    return side.due_in_prompt if in_prompt else side.due


_caches_by_keys: weakref.WeakValueDictionary[int, SchemeCache] = weakref.WeakValueDictionary()


def cache_of(keys: mx.array, values: mx.array) -> SchemeCache | None:
    """The cache that returned these arrays in its last fetch, if any."""
    cache = _caches_by_keys.get(id(keys))
    return cache if cache is not None and cache.is_last_fetch(keys, values) else None


def verifying(layers: Iterable[Any]) -> AbstractContextManager[None]:
    """Steps inside read proposed tokens, some of which may be trimmed: they are read as in single steps.

    Args:
        layers: Of a prompt cache, those of mlx-lm included.
    """
    return _switched_on("is_verifying", layers)


def packing_later(layers: Iterable[Any]) -> AbstractContextManager[None]:
    """Single steps inside do not pack, so that their outputs do not wait for it; ``pack_due`` does later.

    Args:
        layers: Of a prompt cache, those of mlx-lm included.
    """
    return _switched_on("packs_later", layers)


@contextmanager
def _switched_on(switch: Literal["is_verifying", "packs_later"], layers: Iterable[Any]) -> Iterator[None]:
    caches = [layer for layer in layers if isinstance(layer, SchemeCache)]
    for cache in caches:
        setattr(cache, switch, True)
    try:
        yield
    finally:
        for cache in caches:
            setattr(cache, switch, False)


def _attends_packed(rows: int) -> bool:
    """Whether attention of so many query tokens works from packed storage.

    In prefill a GPU decodes the layer's history once instead, for MLX's fused attention; a CPU has none.
    """
    return rows <= MAX_DECODE_ROWS or mx.default_device() == mx.cpu


class SchemeCache:
    """Keys and values of one layer under a ``Scheme``.

    Prefill keeps tokens raw unless ``packs_prompts`` is set, which packs each chunk after its attention
    (before the next chunk, where attention is not routed), except the tokens that the next chunk would pack
    again. Otherwise packing starts with decode. A step of a single token packs what has left the tail; its
    own attention still uses the tokens as they were, so that it does not wait for the encoding. A step of
    several tokens (speculative decoding) packs what had left the tail before it, because its own tokens may
    be trimmed again.

    ``update_and_fetch`` returns arrays that are valid for any attention; for packed tokens they are lazily
    decoded, at no cost if ``attend`` is used instead. On a GPU even building that graph takes longer than a
    small model's step: with ``uses_placeholders`` set, arrays of the right shape without data are returned
    once tokens are packed. This is for models that only pass them to the routed attention (see
    ``accepts_placeholders``).

    Args:
        scheme: Storage formats, tail and sinks.
        dtype: Storage dtype of raw tokens; ``None`` keeps the model's. A 16-bit dtype halves the cache of a
            float32 model.

    Attributes:
        queries: Statistics of the queries observed before the keys are fitted.
        earlier_balance: The keys' balance under an earlier scheme whose fit does not serve this one, until
            they are fitted.
        earlier: The sides as they were under earlier schemes.
        restored: By role, what a side was restored from, and its revision then (see ``stored_side``).
        rounding: What the tokens carry from earlier schemes, by role.
        is_verifying: Whether steps are of proposed tokens (see ``verifying``).
        packs_later: Whether single steps leave packing to ``pack_due`` (see ``packing_later``).
        unsubmitted: Caches of the layers before this one that have packed a chunk of a prompt which is not
            submitted yet, shared with them; only inside ``prompt_cache.reading_together``.
        before_append: Called with the keys and values of each append before it changes anything; may raise.
        route: The attention of the model that the cache is for; by default that of all of mlx-lm.
    """

    route: Route | None = None
    drops_tokens = False
    """Whether an append may drop the oldest tokens."""

    def __init__(self, scheme: Scheme = FP16, dtype: mx.Dtype | None = None) -> None:
        self.scheme = scheme
        self.dtype = dtype
        self.offset = 0
        self.key_side = Side(scheme, "key")
        self.value_side = Side(scheme, "value")
        self.queries = NO_QUERIES
        self.earlier_balance: mx.array | None = None
        self.rope: Rope | None = None
        self.earlier = EarlierSides()
        self.restored: Mapping[str, tuple[object, EarlierSide]] = {}
        self.rounding = dict.fromkeys(ROLES, NO_ROUNDING)
        self.packs_prompts = False
        self.uses_placeholders = False
        self._packing_deferred = self._was_attended = self._is_shared = self._awaits_attention = False
        self._step_rows = MAX_DECODE_ROWS + 1
        self._step_was_cut = False
        self._in_prompt = False
        self.is_verifying = self.packs_later = False
        self.unsubmitted: list[SchemeCache] | None = None
        self.before_append: Callable[[mx.array, mx.array], None] | None = None
        self._is_submitted = True
        self._sides_before_packing: tuple[Side, Side] | None = None
        self._fused = FusedAttention()
        self._dtypes: tuple[mx.Dtype, mx.Dtype] | None = None
        self._placeholders: Placeholders | None = None
        self._fetched_placeholders: tuple[mx.array, mx.array] | None = None
        self._fetched: tuple[weakref.ref[mx.array], weakref.ref[mx.array]] | None = None
        self._fetched_packed = False
        self._steady: SteadyStep | None = None
        self._is_fetched_itself = False  # not as a row of a batch, which appends by itself

    def share(self, workspace: Workspace) -> None:
        """Use a kernel workspace shared with other layers."""
        self._fused.workspace = workspace

    @property
    def is_routed(self) -> bool:
        """Whether the model's attention is routed to caches now."""
        return self.route is not None and self.route.is_active

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.key_side, self.value_side

    @property
    def is_due(self) -> bool:
        """Whether a side has enough tokens beyond its tail to pack."""
        return self.key_side.is_due or self.value_side.is_due

    @property
    def is_complete(self) -> bool:
        """Whether the sides hold as many tokens as were counted; not after an error during packing."""
        return all(side.length == self.offset for side in self.sides)

    @property
    def packed_tokens(self) -> int:
        """Packed and fine tokens of the side that has more."""
        return max(side.encoded for side in self.sides)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append tokens and return all of them, decoded.

        Args:
            keys: ``[batch, heads, tokens, key_dim]``.
            values: ``[batch, heads, tokens, value_dim]``.
        """
        steady = self._steady
        if steady is not None and self.uses_placeholders and not self._awaits_attention and self.is_routed:
            fetched = steady.append(self.key_side, self.value_side, keys, values)
            if fetched is not None:
                self.offset += 1
                self._was_attended, self._awaits_attention = False, True
                self._fetched_placeholders = fetched
                return fetched
        if not keys.shape[2]:
            return self.keys_and_values() if self.key_side.length else (keys, values)
        self.append(keys, values)
        self._is_fetched_itself = True
        return self.keys_and_values()

    def next_token(self) -> NextToken | None:
        """The launch that appends and attends to the next token, if the step is like the last one."""
        if self._steady is None or not self.uses_placeholders or self._awaits_attention:
            return None
        return self._steady.next_token(self.key_side, self.value_side)

    def mark_appended(self, launcher: StepLauncher, output: mx.array) -> None:
        """Record that the launch of ``next_token`` has run; see ``StepLauncher.mark_appended``."""
        launcher.mark_appended(self.key_side, self.value_side, output)
        self.offset += 1
        self._was_attended = True

    @property
    def tokens_before_append(self) -> int:
        """Tokens that the next step sees before its own."""
        return self.offset

    def append(self, keys: mx.array, values: mx.array) -> None:
        """Append tokens, and pack what is due; arguments as for ``update_and_fetch``, at least one token."""
        count = keys.shape[2]
        if self._awaits_attention:
            raise PlaceholderNotAttended
        if self.before_append is not None:
            self.before_append(keys, values)
        self._sides_before_packing = self._steady = None
        self._is_fetched_itself = False
        self._was_attended = self._was_attended and _attends_packed(count)
        was_deferred, self._packing_deferred = self._packing_deferred, self.packs_prompts and count > 1
        self.queries = self.queries.final()
        is_decode = self._is_decode(count)
        self._in_prompt = self._packing_deferred and not is_decode
        if count > 1 and ((was_deferred and self.packs_prompts) or (is_decode and self.is_due)):
            self._pack()
        self._step_rows, self._step_was_cut = count, False
        self.restored = {}
        dtype = self.dtype
        self.key_side.append(keys if dtype is None else keys.astype(dtype))
        self.value_side.append(values if dtype is None else values.astype(dtype))
        self.offset += count
        dtypes = keys.dtype, values.dtype
        if dtypes != self._dtypes:
            self._dtypes, self._placeholders = dtypes, None
        if count > 1 or self.packs_later or not self.is_due:
            return
        if self.uses_placeholders and self.is_routed and self.packed_tokens and not was_deferred:
            # Only the routed attention reads these tokens; it calls ``finish_attention``.
            self._packing_deferred = True
            return
        before = self.key_side.snapshot(), self.value_side.snapshot()
        self._pack()
        self._sides_before_packing = before
        self._is_submitted = False
        if not self.is_routed:
            self.submit()

    def _is_decode(self, rows: int) -> bool:
        """Whether a step of several tokens is one of speculative decoding.

        A prompt's last chunk may be as short as such a step, but it does not follow another short step, and
        only speculative decoding trims a part of a step.
        """
        return self._step_was_cut or max(rows, self._step_rows) <= MAX_DECODE_ROWS

    @property
    def attends_row_by_row(self) -> bool:
        """Whether this step's tokens get the bits of single steps, so that verified tokens are the same.

        Only on a CPU: there its other operations give rows the same bits as well (up to 12 rows with
        OpenBLAS), and a row of attention takes as long alone as among others.
        """
        return self.is_verifying and mx.default_device() == mx.cpu

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """All tokens, in the dtypes that the model last passed.

        Also called by layers that share this layer's keys and values (Gemma 3n); they attend from packed
        storage.
        """
        keys, values = self._sides_before_packing or (self.key_side, self.value_side)
        packed = self._fetched_packed = keys.encoded > 0 or values.encoded > 0
        if packed and self.uses_placeholders and self.is_routed:
            if self._placeholders is None or self._placeholders.thread is not thread_key():
                dims = keys.head_dim, values.head_dim
                self._placeholders = placeholders_for(keys.shape, dims, self._fetched_dtypes)
            self._was_attended, self._awaits_attention = False, True
            # Placeholders refer to no storage, so no weak references are needed.
            self._fetched = None
            self._fetched_placeholders = self._placeholders.of_length(keys.length)
            return self._fetched_placeholders
        # Arrays that were not evaluated last time (the cache attended instead) will not be this time.
        fetched = self.decoded(keep_graph=self._was_attended and not self._is_shared)
        _caches_by_keys[id(fetched[0])] = self
        self._was_attended = False
        self._fetched_placeholders = None
        # Weak references: without routing the model evaluates these arrays, which would double the cache.
        self._fetched = weakref.ref(fetched[0], self._on_fetched_freed), weakref.ref(fetched[1])
        return fetched

    def decoded(self, keep_graph: bool = False) -> tuple[mx.array, mx.array]:
        """All tokens decoded, never placeholders; for ``keep_graph`` see ``Side.fetch``."""
        keys, values = self._sides_before_packing or self.sides
        key_dtype, value_dtype = self._fetched_dtypes
        return keys.fetch(key_dtype, keep_graph), values.fetch(value_dtype, keep_graph)

    @property
    def _fetched_dtypes(self) -> tuple[mx.Dtype, mx.Dtype]:
        return self._dtypes or (self.key_side.dtype, self.value_side.dtype)

    def mark_shared(self) -> None:
        """Record that other layers evaluate what this one fetched (Gemma 4)."""
        self._is_shared = True
        for side in self.sides:
            side.release_decoded()

    def _on_fetched_freed(self, freed: weakref.ref[mx.array]) -> None:
        """Release the sides before packing once the arrays fetched from them are freed.

        The decoding graph as well, unless they were attended to here: otherwise it may have been evaluated.
        """
        if self._fetched is not None and self._fetched[0] is freed:
            self._sides_before_packing = None
            if not self._was_attended:
                for side in self.sides:
                    side.release_decoded()

    def copy_from(self, old: SchemeCache) -> None:
        """Take the tokens of another cache.

        A side in the same format is taken as it is; one that an earlier scheme had in that format as it was
        then, followed by the tokens since. Other tokens are decoded, and the fit is kept where it applies.
        """
        self.offset, self._dtypes = old.offset, old._dtypes
        self.queries, self.rope = old.queries.final(), old.rope
        self.packs_prompts, self.uses_placeholders = old.packs_prompts, old.uses_placeholders
        self.earlier = old.earlier
        for role, target, source in zip(ROLES, self.sides, old.sides, strict=True):
            if not source.length:
                continue
            target.set_head_dim(source.head_dim)
            if source.spec == target.spec and source.scheme.sinks == target.scheme.sinks:
                target.restore(source.arrays(), source.head_dim, source.dtype)
                self.rounding[role] = old.rounding[role]
                if (stored := old.stored_side(role)) is not None:
                    self._mark_restored(role, target, stored)
            else:
                self._convert_side(role, target, source, old)
            self.earlier = self.earlier.without(role, target.spec)

    def stored_side(self, role: str) -> EarlierSide | None:
        """What a file holds of a side that has not changed since it was restored from there."""
        revision, earlier = self.restored.get(role, (None, None))
        side = self.key_side if role == "key" else self.value_side
        if earlier is None or earlier.is_lost or side.revision is not revision:
            return None
        return earlier if earlier.holds(side.arrays()) else None

    def _mark_restored(self, role: str, side: Side, earlier: EarlierSide) -> None:
        self.restored = {**self.restored, role: (side.revision, earlier)}

    def forget_earlier(self) -> None:
        """Release what files hold of earlier schemes."""
        self.earlier, self.restored = EarlierSides(), {}

    def _convert_side(self, role: str, target: Side, source: Side, old: SchemeCache) -> None:
        """Fill an empty side with the tokens of one in another format.

        Those that an earlier scheme had in the target's format come as they were; others are decoded from the
        finest format that has them.
        """
        first = end = old.offset - source.length
        rounding = NO_ROUNDING
        with suppress(OSError):  # without its file a side is not used
            if (earlier := self.earlier.get(role, target.spec)) is not None:
                end = earlier.restore(target, first)
                rounding = earlier.rounding.before(end)
                if end == old.offset:  # else other tokens follow, maybe as many as the file holds
                    self._mark_restored(role, target, earlier)
        with suppress(OSError):
            if (found := self.earlier.finer(role, source.spec)) is not None and found[1].end > end:
                spec, earlier = found
                finer = Side(replace(self.scheme, key=spec, value=spec), source.role)
                covered = earlier.restore(finer, first)
                if covered > end:
                    target.append(finer.fetch(source.dtype)[:, :, end - first :])
                    carried = finer.rounded(earlier.rounding, first)
                    rounding, end = rounding.then(end, carried.before(covered)), covered
        if end < old.offset:
            target.append(source.fetch(source.dtype)[:, :, end - first :])
            rounding = rounding.then(end, old.rounding_now(role))
        target.take_fit_of(source)
        if role == "key" and self._is_unfitted:
            self.earlier_balance = source.format.fitted.get("balance", old.earlier_balance)
        self.rounding[role] = rounding

    def mark_rounded(self, bits: tuple[int, int]) -> None:
        """Record that packed tokens were stored at so few bits (of keys, of values) under earlier schemes."""
        for role, side, fewest in zip(ROLES, self.sides, bits, strict=True):
            begin, end = side.packed_positions(self.offset - side.length)
            end = end if end > begin else self.offset
            self.rounding[role] = self.rounding[role].lowered(begin, end, fewest)

    def rounding_now(self, role: str) -> Rounding:
        """What the tokens of a side carry from earlier schemes and their present format."""
        side = self.key_side if role == "key" else self.value_side
        return side.rounded(self.rounding[role], self.offset - side.length)

    def pack_due(self) -> None:
        """Pack what has left the tail on both sides."""
        encode_together([self.take_due()])
        self.submit()

    @property
    def awaits_packing(self) -> bool:
        """Whether packing a chunk of a prompt was left to ``take_prompt`` or the next chunk."""
        return self._packing_deferred and not self._awaits_attention

    def expect(self, tokens: int) -> None:
        """Tell how many tokens a prompt that is packed while it is read will add; 0 after it."""
        if self.packs_prompts and not self.drops_tokens:
            raw = self.scheme.sinks + self.scheme.tail + self.scheme.fine
            for side in self.sides:
                side.packed.expected = max(0, side.length + tokens - raw) if tokens else 0

    def free_spare_room(self) -> None:
        """Free the room that a prompt was expected to need and did not."""
        if self.packs_prompts and not self.drops_tokens:
            self._steady = None  # it has views of the arrays
            for side in self.sides:
                side.free_spare_room()

    def take_prompt(self) -> list[list[Encoding]]:
        """``take_due`` of the last chunk of a prompt, for ``encode_together``. ``submit`` follows."""
        self._packing_deferred = self._is_submitted = False
        return self.take_due(self._in_prompt)

    @property
    def _packs_with_others(self) -> bool:
        """Whether a prompt's chunk is packed behind its last layer: on a GPU only if sides have to be fitted,
        as a kernel encodes those of one layer as fast as of several.
        """
        return kernels() is None or bool(self.unfitted_in_prompt)

    @property
    def unfitted(self) -> list[Unfitted]:
        """The sides that ``pack_due`` fits, for ``fit_together``."""
        return self._unfitted(in_prompt=False)

    @property
    def unfitted_in_prompt(self) -> list[Unfitted]:
        """The sides that ``take_prompt`` fits, for ``fit_together``."""
        return self._unfitted(self._in_prompt)

    def _unfitted(self, in_prompt: bool) -> list[Unfitted]:
        unfitted = [side for side in self.sides if side.spec.kind != "raw" and not side.format.fitted]
        due = [side for side in unfitted if _due(side, in_prompt).encoded > side.encoded]
        statistics = self._query_statistics if due else NO_STATISTICS
        return [(side, statistics) for side in due]

    @property
    def _query_statistics(self) -> QueryStatistics:
        first, seen = self.offset - self.key_side.length, self.queries
        return QueryStatistics(seen.mean_energy, seen.count, self.earlier_balance, self.rope, first)

    def _pack(self) -> None:
        encode_together([self.take_due(self._in_prompt)])

    def take_due(self, in_prompt: bool = False) -> list[list[Encoding]]:
        """Take out what is due, from each side; see ``Side.take_due``. ``submit`` follows.

        Args:
            in_prompt: Whether more of a prompt may follow (see ``Side.due_in_prompt``).
        """
        self._sides_before_packing = self._steady = None
        self.queries = self.queries.final()
        statistics = self._query_statistics
        packing = [
            (role, side) for role, side in zip(ROLES, self.sides, strict=True) if side.spec.kind != "raw"
        ]
        # In place on both sides or on none, so that their stores stay alike, or become so.
        own = self._fused.workspace.of_thread
        in_place = (
            not in_prompt and own.has_launched and all(one.can_pack_in_place(own) for _, one in packing)
        )
        are_alike = len({(side.fine.start, side.fine.capacity) for _, side in packing}) <= 1
        workspace = own if in_place and are_alike else None
        due = [_due(side, in_prompt) for _, side in packing]
        taken = []
        for role, side in packing:
            # Both the same, as kernels need it. They differ if one side came from a scheme of another tail.
            target = Encoded(max(one.encoded for one in due), max(one.packed for one in due))
            taken.append(side.take_due(statistics, self.rounding[role], target, workspace))
        if not self._is_unfitted:
            self.queries, self.earlier_balance = NO_QUERIES, None
        return taken

    def submit(self, output: mx.array | None = None) -> None:
        """Start evaluating arrays that no output of this step depends on; the next may be another thread's.

        Args:
            output: Evaluated before them, if it reads tokens as they were: they can then change in place.
        """
        if arrays := self.take_submitted():
            mx.async_eval(() if output is None else output, arrays)  # type: ignore[no-untyped-call]

    def take_submitted(self) -> list[Any]:
        """The cache's arrays, which ``submit`` evaluates, for a caller that does so for several layers."""
        self._is_submitted = True
        arrays = [one for side in self.sides for store in side.stores.values() for one in store.unsubmitted]
        return [arrays, [side.format.fitted for side in self.sides]] if arrays else []

    def observe(self, queries: mx.array) -> None:
        """Add queries to the statistics that keys are fitted to; no effect once they are fitted.

        Those of tokens that are trimmed in the next step are taken back.

        Args:
            queries: ``[batch, query_heads, rows, key_dim]``. Rows that are not finite are ignored.
        """
        if self._is_unfitted:
            left_out = self._rows_left_out(queries.shape[2])
            _, heads = self.key_side.shape
            self.queries = self.queries.add(queries, heads, left_out, self.is_verifying)

    def _rows_left_out(self, rows: int) -> int:
        """Of a reply's last ``rows`` tokens, those whose queries are not observed while packing is held back.

        As many are seen as if it were not: observing takes as many operations as attention to raw tokens.
        """
        if not self.key_side.least_packed or (rows > 1 and not self.is_verifying):
            return 0
        return min(rows, max(0, self.offset - self.scheme.sinks - self.scheme.least_to_encode()))

    @property
    def _is_unfitted(self) -> bool:
        """Whether keys are packed under this scheme and have not been fitted yet."""
        return self.key_side.spec.kind != "raw" and not self.key_side.format.fitted

    def is_last_fetch(self, keys: mx.array, values: mx.array) -> bool:
        """Whether these are the arrays of the last fetch."""
        if self._fetched_placeholders is not None:
            return self._fetched_placeholders[0] is keys and self._fetched_placeholders[1] is values
        fetched = self._fetched
        return fetched is not None and fetched[0]() is keys and fetched[1]() is values

    @property
    def has_placeholders(self) -> bool:
        """Whether the last fetch returned placeholders; ``decoded`` has what they stand for."""
        return self._fetched_placeholders is not None

    def can_attend(self, queries: mx.array, keys: mx.array, values: mx.array) -> bool:
        """Whether ``attend`` applies: few queries, over the arrays of the last fetch, with packed tokens."""
        return self._fetched_packed and self.is_last_fetch(keys, values) and _attends_packed(queries.shape[2])

    def attend_fetched(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        mask: mx.array | str | None,
        sink_logits: mx.array | None,
    ) -> mx.array | None:
        """``attend``; ``None`` where it does not apply (see ``can_attend``)."""
        steady, fetched = self._steady, self._fetched_placeholders
        if steady is not None and fetched is not None and fetched[0] is keys and fetched[1] is values:
            output = steady.attend(self.key_side, self.value_side, queries, scale, mask, sink_logits)
            if output is not None:
                self._was_attended, self._awaits_attention = True, False
                return output
        if self.can_attend(queries, keys, values):
            return self.attend(queries, scale, mask, sink_logits)
        return None

    def attend(
        self,
        queries: mx.array,
        scale: float,
        mask: mx.array | str | None,
        sink_logits: mx.array | None = None,
    ) -> mx.array:
        """Attention from packed storage to the tokens of the last fetch; see ``attention``."""
        self._was_attended = True
        keys, values = self._sides_before_packing or (self.key_side, self.value_side)
        output = self._fused(queries, keys, values, scale, mask, sink_logits)
        self._steady = self._steady_step(queries)
        if output is None:
            attend = attention_by_row if self.attends_row_by_row else attention
            output = attend(queries, keys, values, scale, mask, sink_logits)
        del keys, values
        self.finish_attention(output)
        return output

    def _steady_step(self, queries: mx.array) -> SteadyStep | None:
        """Steps like the one that has just attended, if it leaves nothing to do."""
        if (
            self.drops_tokens
            or not self._is_fetched_itself
            or self._step_rows != 1
            or self._packing_deferred
            or not self._is_submitted
            or self.dtype is not None
            or self._fetched_placeholders is None
            or self._placeholders is None
        ):
            return None
        launcher = self._fused.steady_launcher(queries)
        return None if launcher is None else SteadyStep(launcher, *self.sides, self._placeholders)

    def finish_attention(self, output: mx.array) -> None:
        """Perform packing that was deferred until ``output`` had been computed from the last fetch."""
        self._sides_before_packing = None
        self._awaits_attention = False
        together = self.unsubmitted
        if self._packing_deferred and not (together is not None and self._packs_with_others):
            encode_together([self.take_prompt()])
        if self._is_submitted:
            return
        if together is None or not self.has_placeholders:
            self.submit(output)
        else:
            together.append(self)

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """The mask for ``N`` new tokens, in mlx-lm's protocol."""
        mask: mx.array | str | None = create_attention_mask(
            N, offset=self.offset, return_array=return_array, window_size=window_size
        )
        return mask

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        """Drop the last ``n`` tokens; returns how many were dropped."""
        n = min(self.offset, n)
        self.queries = self.queries.without_last(n) if n < self._step_rows else self.queries.final()
        for side in self.sides:
            side.trim(n)
        self.offset -= n
        self.earlier, self.restored = self.earlier.before(self.offset), {}
        self.rounding = {role: rounding.before(self.offset) for role, rounding in self.rounding.items()}
        self._step_was_cut = 0 < n < self._step_rows <= MAX_VERIFIED_ROWS
        self._awaits_attention = False
        self._fetched_placeholders = self._fetched = self._sides_before_packing = self._steady = None
        self.submit()
        return n

    def size(self) -> int:
        return self.offset

    def empty(self) -> bool:
        return self.key_side.head_dim == 0

    @property
    def nbytes(self) -> int:
        """Allocated bytes of this layer's arrays; what layers share is excluded."""
        sides = sum(side.allocated_bytes + side.working_bytes for side in self.sides)
        return sides + self.statistics_bytes + self.launch_bytes

    @property
    def statistics_bytes(self) -> int:
        """Bytes of what the keys will be fitted with."""
        return self.queries.nbytes + (0 if self.earlier_balance is None else self.earlier_balance.nbytes)

    @property
    def launch_bytes(self) -> int:
        """Bytes of the kernels' inputs that are kept between steps."""
        return self._fused.nbytes

    @property
    def shared_arrays(self) -> list[mx.array]:
        """Arrays that layers share: rotations and the kernels' working memory."""
        rotations = [array for side in self.sides for array in side.format.shared.values()]
        return rotations + self._fused.workspace.arrays

    def release_working_arrays(self) -> None:
        """Release what only makes steps faster, except the kernels' inputs."""
        for side in self.sides:
            side.release_working_arrays()
        release_angles()

    @property
    def state(self) -> tuple[str, dict[str, mx.array]]:
        """A JSON description and named arrays, from which the cache can be restored exactly."""
        arrays = {
            f"{name}_{key}": array
            for name, side in zip(ROLES, self.sides, strict=True)
            for key, array in side.arrays().items()
        }
        if self.queries.energy is not None:
            arrays["query_energy"] = self.queries.energy
        rope = self.rope.json if self.rope is not None and self._is_unfitted else "null"
        return f'{json.dumps(self._description())[:-1]}, "rope": {rope}}}', arrays

    @state.setter
    def state(self, state: tuple[str, dict[str, mx.array]]) -> None:
        text, *rest = state
        arrays = rest[0] if rest else {}  # mlx-lm's load_prompt_cache drops an empty dictionary
        description: dict[str, Any] = untrusted.parse_json(text)
        scheme, dtype = untrusted.scheme(description), description["dtype"]
        self._init_from(description, scheme, None if dtype is None else untrusted.FLOATS[dtype])
        key, value = description["sides"]
        for side, (head_dim, raw_dtype) in ((self.key_side, key), (self.value_side, value)):
            prefix = f"{side.role}_"
            own = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
            untrusted.check_side(side.spec, head_dim, side.role, own)
            side.restore(own, head_dim, untrusted.FLOATS[raw_dtype])
        energy = arrays.get("query_energy")
        if energy is not None and energy.shape[2:] != (1, self.key_side.head_dim):
            raise ValueError("The query statistics do not fit the keys.")
        self.queries = ObservedQueries(energy, untrusted.whole(description["queries_seen"]))
        self.rope = None if description["rope"] is None else Rope.from_json(description["rope"])
        self.offset = untrusted.whole(description["offset"])
        runs = description.get("rounding", [(), ()])  # caches of older versions have none
        self.rounding = {
            role: Rounding.from_json(one).before(self.offset) for role, one in zip(ROLES, runs, strict=True)
        }
        if not self.is_complete:
            raise ValueError("The arrays do not hold as many tokens as the cache says.")

    def _description(self) -> dict[str, Any]:
        return {
            "scheme": self.scheme.name,
            "formats": [self.scheme.key.to_json(), self.scheme.value.to_json()],
            "tail": self.scheme.tail,
            "sinks": self.scheme.sinks,
            "fine": self.scheme.fine,
            "dtype": None if self.dtype is None else _dtype_name(self.dtype),
            "offset": self.offset,
            "queries_seen": self.queries.count,
            "rounding": [list(self.rounding[role].runs) for role in ROLES],
            "sides": [[side.head_dim, _dtype_name(side.dtype)] for side in self.sides],
        }

    def _init_from(self, description: dict[str, Any], scheme: Scheme, dtype: mx.Dtype | None) -> None:
        """Initialise an empty cache from a description."""
        SchemeCache.__init__(self, scheme, dtype)

    @classmethod
    def from_state(cls, state: tuple[str, dict[str, mx.array]]) -> Self:
        cache = cls.__new__(cls)
        cache.state = state
        return cache

    @staticmethod
    def merge(caches: Sequence[Any]) -> Any:
        """A batch of copies of these caches, for mlx-lm's ``BatchGenerator``."""
        from tqchat.kv.batch import BatchCache  # it is made of these

        return BatchCache.merge(caches)

    def to_quantized(self, group_size: int = 64, bits: int = 4) -> Any:
        """Refused: mlx-lm's quantisation (``kv_bits``) does not apply to a cache under a scheme."""
        raise NotImplementedError(
            f"This cache is stored under the scheme {self.scheme.name}, which kv_bits does not apply to. "
            "Leave kv_bits out; for fewer bits use another scheme, or tqchat.kv.convert."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A dtype cannot be deep-copied, and rotations stay shared.
        copied = type(self).from_state(self.state)
        for name in TRANSIENT:
            setattr(copied, name, getattr(self, name))
        copied._fused.workspace = self._fused.workspace
        copied.submit()
        return copied
