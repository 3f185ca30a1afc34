"""Log-probabilities of a reply's tokens, for requests that ask for them."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import codecs
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from tqchat.engine.decoding.sampling import Sampler
from tqchat.engine.events import TokenLogprob


@dataclass(frozen=True)
class _Row:
    """Arrays of one sampled token: its id ``[1]`` and log-probability ``[1]``, and those of the likeliest."""

    token: mx.array
    logprob: mx.array
    top: mx.array
    top_logprobs: mx.array


class Logprobs:
    """Takes log-probabilities while a sampler samples, and gives them to the text that shows their tokens.

    They are those of the model's distribution, before penalties and temperature.
    """

    def __init__(self, count: int, bytes_of: Callable[[int], bytes], given: str = "") -> None:
        """
        Args:
            count: Likeliest tokens that are told in each place, from 0.
            bytes_of: The text of a token.
            given: Text with which the reply begins, and which is not sampled.
        """
        self._count, self._bytes_of = count, bytes_of
        self._rows: dict[int, _Row] = {}
        self._unshown: deque[TokenLogprob] = deque()
        self._shown = 0
        self._shown_ahead = given.encode("utf-8", "replace")

    def watching(self, sampler: Sampler) -> Sampler:
        """The same sampler, watched."""
        return _Watched(sampler, self._take)

    def _take(self, number: int, logprobs: mx.array, tokens: mx.array) -> None:
        """Keep those of tokens that were sampled, the first of them with this number in the reply.

        Args:
            logprobs: ``[tokens, vocabulary]``.
        """
        count = min(self._count, logprobs.shape[-1])
        own = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)
        top = mx.argpartition(-logprobs, max(count - 1, 0), axis=-1)[:, :count]
        top_logprobs = mx.take_along_axis(logprobs, top, axis=-1)
        mx.async_eval(own, top, top_logprobs)  # type: ignore[no-untyped-call]
        for row in range(tokens.size):
            self._rows[number + row] = _Row(tokens[row], own[row], top[row], top_logprobs[row])

    def add(self, token: int, number: int) -> None:
        """A token of the reply is known, and may be shown. One that was not sampled has none."""
        row = self._rows.pop(number, None)
        if row is None or row.token.item() != token:
            return
        others: Any = row.top.tolist()
        logprobs: Any = row.top_logprobs.tolist()
        own: Any = row.logprob.item()
        top = sorted(zip(logprobs, others, strict=True), reverse=True)
        likeliest = tuple((self._bytes_of(other), logprob) for logprob, other in top)
        self._unshown.append(TokenLogprob(self._bytes_of(token), own, likeliest))

    def shown_by(self, text: str) -> tuple[TokenLogprob, ...]:
        """Log probabilities of the tokens whose text begins in this piece of the reply.

        Tokens before them that no piece has shown are left out: marks, calls, dropped white space.
        """
        found = []
        left = text.encode("utf-8", "replace")
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")  # tokens can split characters
        offset, self._shown = self._shown, self._shown + len(text)
        common = min(len(left), len(self._shown_ahead))
        if left[:common] == self._shown_ahead[:common]:
            offset += len(decoder.decode(left[:common]))
            left, self._shown_ahead = left[common:], self._shown_ahead[common:]
        while left and self._unshown:
            one = self._unshown.popleft()
            for spelled in _shown_as(one.spelling):
                common = min(len(left), len(spelled))
                if common and left[:common] == spelled[:common]:
                    found.append(replace(one, offset=offset))
                    offset += len(decoder.decode(left[:common]))
                    left, self._shown_ahead = left[common:], spelled[common:]
                    break
        return tuple(found)


def _shown_as(spelling: bytes) -> tuple[bytes, ...]:
    """Forms of a token in a text: itself, without white space in front, without broken characters."""
    return spelling, spelling.lstrip(), spelling.decode("utf-8", "ignore").encode()


class _Watched:
    """A sampler that shows the logits of what it samples."""

    def __init__(self, sampler: Sampler, take: Callable[[int, mx.array, mx.array], None]) -> None:
        self._sampler, self._take = sampler, take

    def sample(
        self, logits: mx.array, number: int, before: Sequence[int], pending: mx.array | None = None
    ) -> mx.array:
        logprobs = _normalised(logits)
        sampled = self._sampler.sample(logits, number, before, pending)
        self._take(number, logprobs, sampled)
        return sampled

    def sample_rows(
        self, logits: mx.array, number: int, before: Sequence[int], then: Sequence[int]
    ) -> mx.array:
        logprobs = _normalised(logits)
        sampled = self._sampler.sample_rows(logits, number, before, then)
        self._take(number, logprobs, sampled)
        return sampled


def _normalised(logits: mx.array) -> mx.array:
    """Log-probabilities, before a sampler changes the logits."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
