"""Encodes tokens of several sides at once: for the few of a step, an operation takes longer than its work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx

from tqchat.kv.codec.centres import Centres
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.kernels.device import kernels
from tqchat.kv.kernels.encode import encode
from tqchat.kv.kernels.workspace import ThreadWorkspace
from tqchat.kv.storage.joint_fit import stacked
from tqchat.kv.storage.side import PACK_CHUNK_VECTORS, Encoding

MAX_VECTORS = PACK_CHUNK_VECTORS
"""Vectors encoded at once: with more, neither the number of operations nor that of threads matters."""


def are_few(sides: Sequence[Sequence[Encoding]]) -> bool:
    """Whether what a layer has taken out is so little that it is worth encoding with that of other layers."""
    return all(
        2 * _vectors(one) <= MAX_VECTORS and not one.is_long for encodings in sides for one in encodings
    )


def _vectors(encoding: Encoding) -> int:
    batch, heads, tokens, _ = encoding.x.shape
    return batch * heads * tokens


def encode_together(sides: Sequence[Sequence[Encoding]]) -> None:
    """Encode and append what sides have taken out.

    Args:
        sides: The encodings of each, which are appended in their order.
    """
    if kernels() is not None:
        _encode_by_kernels(sides)
        return
    groups: dict[object, list[Encoding]] = {}
    # The first encoding of every side before the second of any.
    for number in range(max(map(len, sides), default=0)):
        for encodings in sides:
            if number < len(encodings):
                groups.setdefault((number, _kind(encodings[number])), []).append(encodings[number])
    for group in groups.values():
        size = max(1, MAX_VECTORS // _vectors(group[0]))
        for start in range(0, len(group), size):
            _encode_batch(group[start : start + size])


def _kind(encoding: Encoding) -> object:
    """Equal for encodings that can be done in one batch."""
    format_ = encoding.format
    if not isinstance(format_, TurboFormat) or encoding.is_long:
        return id(encoding)
    fit = format_.centres is None, format_.balance is None, format_.metric is None
    return format_.role, format_.quantiser, id(format_.rotation), fit, encoding.x.shape, encoding.x.dtype


def _encode_by_kernels(sides: Sequence[Sequence[Encoding]]) -> None:
    """``encode_together`` on a GPU: a launch for each encoding, in place where possible."""
    outputs: dict[ThreadWorkspace, list[mx.array]] = {}
    for encodings in sides:
        done: mx.array | None = None
        for one in encodings:
            after = one.workspace.before if one.workspace is not None and done is None else done
            output = None if after is None else one.encode_in_place(after)
            if output is None:
                one.append(encode(one.format, one.vectors(after)))
            else:
                done = output
        if done is not None and encodings[-1].workspace is not None:
            outputs.setdefault(encodings[-1].workspace, []).append(done)
    for workspace, last in outputs.items():
        workspace.wait_for(last)


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
