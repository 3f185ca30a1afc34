"""Encodes tokens of several sides at once: for the few of a step, an operation takes longer than its work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx

from tqchat.kv.codec.centres import Centres
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.kernels.device import kernels
from tqchat.kv.kernels.encode import encode
from tqchat.kv.kernels.in_place import MAX_PARTS, encode_in_place
from tqchat.kv.kernels.workspace import ThreadWorkspace
from tqchat.kv.storage.joint_fit import stacked
from tqchat.kv.storage.side import PACK_CHUNK_VECTORS, Encoding

MAX_VECTORS = PACK_CHUNK_VECTORS
"""Vectors encoded at once: with more, neither the number of operations nor that of threads matters."""


def are_few(sides: Sequence[Sequence[Encoding]]) -> bool:
    """Whether what a layer has taken out is so little that it is worth encoding with that of other layers."""
    return all(2 * one.count <= MAX_VECTORS and not one.is_long for encodings in sides for one in encodings)


def encode_together(layers: Sequence[Sequence[Sequence[Encoding]]]) -> None:
    """Encode and append what layers have taken out.

    Args:
        layers: For each its sides, and for each of those its encodings, which are appended in their order.
    """
    if kernels() is not None:
        _encode_by_kernels(layers)
        return
    sides = [side for layer in layers for side in layer]
    groups: dict[object, list[Encoding]] = {}
    # The first encoding of every side before the second of any.
    for number in range(max(map(len, sides), default=0)):
        for encodings in sides:
            if number < len(encodings):
                groups.setdefault((number, _kind(encodings[number])), []).append(encodings[number])
    for group in groups.values():
        size = max(1, MAX_VECTORS // group[0].count)
        for start in range(0, len(group), size):
            _encode_batch(group[start : start + size])


def _kind(encoding: Encoding) -> object:
    """Equal for encodings that can be done in one batch."""
    format_ = encoding.format
    if not isinstance(format_, TurboFormat) or encoding.is_long:
        return id(encoding)
    fit = format_.centres is None, format_.balance is None, format_.metric is None
    return format_.role, format_.quantiser, id(format_.rotation), fit, encoding.x.shape, encoding.x.dtype


def _encode_by_kernels(layers: Sequence[Sequence[Sequence[Encoding]]]) -> None:
    """``encode_together`` on a GPU: what a layer packs in place by one launch, the rest by one each."""
    outputs: dict[ThreadWorkspace, list[mx.array]] = {}
    for sides in layers:
        encodings = [one for side in sides for one in side]
        joined = _joined(encodings)
        if joined:
            workspace, vectors = joined[0].workspace, [one.in_place for one in joined]
            assert workspace is not None
            done = encode_in_place(vectors, workspace, workspace.before)
            if done is None:
                joined = []
            else:
                outputs.setdefault(workspace, []).append(done)
        if len(joined) == len(encodings):
            continue
        for one in encodings:
            if not any(one is other for other in joined):
                after = None if one.workspace is None else one.workspace.before
                one.append(encode(one.format, one.vectors(after)))
    for workspace, last in outputs.items():
        workspace.wait_for(last)


def _joined(encodings: Sequence[Encoding]) -> list[Encoding]:
    """Those that one launch can do: in the formats of their stores, so that there are few kernels to compile,
    and each the only one that appends to its store.
    """
    joined = [one for one in encodings if one.can_be_in_place]
    if len(joined) == len(encodings) and len({id(one.store) for one in joined}) == len(joined) <= MAX_PARTS:
        return joined
    stores = [one.store for one in encodings]
    return [one for one in joined if sum(one.store is other for other in stores) == 1][:MAX_PARTS]


def _encode_batch(batch: Sequence[Encoding]) -> None:
    formats = [one.format for one in batch if isinstance(one.format, TurboFormat)]
    if len(batch) == 1 or len(formats) != len(batch):
        for one in batch:
            one.append(encode(one.format, one.x))
        return
    centres = [one.centres for one in formats if one.centres is not None]
    together = replace(
        formats[0],
        centres=Centres(
            *map(mx.concatenate, ([one.codes for one in centres], [one.scales for one in centres]))
        )
        if centres
        else None,
        balance=stacked([one.balance for one in formats]),
        metric=stacked([one.metric for one in formats]),
    )
    block = encode(together, mx.concatenate([one.x for one in batch]))
    rows = batch[0].x.shape[0]
    for number, one in enumerate(batch):
        one.append(tuple(array[number * rows : (number + 1) * rows] for array in block))
