"""Encodes prompts so that only the template writes control tokens; contents are ordinary text.

Before rendering, each control token's text in a content is replaced by a private-use character, so the
control tokens found in the rendered text are the template's. A private-use barrier is added where a content
could complete a control token together with its neighbours. The prompt, with the original contents, is then
encoded by a copy of the tokenizer in which every control token is a private-use character, placed where the
template wrote it. All other rules are the tokenizer's own, so ordinary text gets the same tokens as before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, WordLevel, WordPiece

from tqchat.engine.reasoning_marks import TEMPLATE_PAIRS, Pair, split_thought
from tqchat.engine.templates.finding import ChatTemplate

_FIRST_PRIVATE, _LAST_PRIVATE = 0xF0000, 0xFFFFD
_FIRST_STAND_IN, _LAST_STAND_IN = 0x100000, 0x10FFFD
_REASONING = frozenset(mark for pair in TEMPLATE_PAIRS for mark in (pair.opening, pair.closing))
_LOOKS_LIKE_CONTROL = re.compile(
    r"<\|.*|.*\|>|<｜.*｜>|\[/?[A-Z_]{3,}\]|</?\w+:\w+>|<(?:start|end)_of_\w+>", re.DOTALL
)
_SCHEMA_WORDS = frozenset(
    (
        *("function", "type", "name", "description", "parameters", "return", "response", "properties"),
        *("required", "items", "enum", "default", "format", "string", "number", "integer", "boolean"),
        *("object", "array", "null", "const", "title", "nullable", "strict", "anyOf", "allOf", "oneOf"),
        *("$ref", "$defs", "additionalProperties", "minimum", "maximum"),
    )
)
"""Words of JSON schemas that templates look for."""
_MIN_LENGTH = 3
_MAX_ROUNDS = 8
_MAX_TEMPLATES = 2
"""Templates of one tokenizer: for chats, and for chats with tools."""


class ControlTokens:
    """The control tokens of a tokenizer under a chat template.

    These are its special tokens, and of the other added tokens those that the template writes or that look
    like control tokens. Added tokens for white space, words or HTML tags are ordinary text.
    """

    def __init__(self, tokenizer: Any, literal_text: str) -> None:
        self.inner = getattr(tokenizer, "_tokenizer", tokenizer)
        self.added: dict[int, AddedToken] = dict(self.inner.added_tokens_decoder)
        self.ids = {
            token: added.content for token, added in self.added.items() if _is_control(added, literal_text)
        }
        self.by_text = {text: token for token, text in self.ids.items()}
        texts = sorted(self.by_text, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, texts)) or "(?!)")
        hidden = sorted(self.by_text.keys() | _REASONING, key=len, reverse=True)
        self.hidden = re.compile("|".join(map(re.escape, hidden)))
        """Strings that contents must not show a template: control tokens, and marks of reasoning, by which
        templates cut earlier replies, even if they are ordinary text to the tokenizer.
        """
        self._longest = max(map(len, texts), default=0)
        self._prefixes = frozenset(text[:end] for text in texts for end in range(1, len(text)))
        self._suffixes = frozenset(text[start:] for text in texts for start in range(1, len(text)))
        self._all = "\0".join(texts)
        self.backend: Tokenizer | None = getattr(self.inner, "backend_tokenizer", None)
        self.unknown = self._unknown()
        """Tokens of characters outside the vocabulary."""
        self.normalizes = (
            self.backend is not None
            and self.backend.normalizer is not None
            and (
                not isinstance(self.backend.model, BPE) or any(self.added[one].normalized for one in self.ids)
            )
        )
        """Whether normalization may turn other characters into a control token."""
        self._stand_ins: dict[tuple[int, bool], _StandIns] = {}

    def _unknown(self) -> frozenset[int]:
        if self.backend is None:
            return frozenset({self.inner.unk_token_id}) & self.ids.keys()
        unknown = set(self.backend.encode(chr(_LAST_STAND_IN), add_special_tokens=False).ids)
        if isinstance(self.backend.model, WordPiece | WordLevel):
            # Their normalizers may drop private characters.
            named = self.backend.token_to_id(self.backend.model.unk_token)
            unknown |= {named} if named is not None else set()
        return frozenset(unknown) & self.ids.keys()

    def may_join_before(self, core: str) -> bool:
        """Whether a control token could end in this text's beginning, or contain all of it."""
        return core in self._all or any(core[:end] in self._suffixes for end in range(1, self._longest))

    def may_join_after(self, core: str) -> bool:
        """Whether a control token could begin in this text's end, or contain all of it."""
        return core in self._all or any(core[-size:] in self._prefixes for size in range(1, self._longest))

    def spans(self, text: str) -> list[tuple[int, int, int]]:
        """Control tokens that the tokenizer reads in a text: token, start, end."""
        if self.backend is None:
            return [(self.by_text[m[0]], m.start(), m.end()) for m in self.pattern.finditer(text)]
        self.backend.encode_special_tokens = False
        encoding = self.backend.encode(text, add_special_tokens=False)
        found = []
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self.ids and end > start:
                # The span includes white space that the token swallows.
                at = text.find(self.ids[token], start, end)
                if at >= 0:
                    found.append((token, at, at + len(self.ids[token])))
                elif token not in self.unknown:
                    found.append((token, start, end))  # the text becomes the token's by normalization
        return found

    def stand_ins(self, text: str, scrubbed: bool) -> _StandIns | None:
        """A tokenizer copy whose private-use characters do not occur in the text, ``None`` if there are too
        few.
        """
        used = {ord(c) for c in set(text) if ord(c) >= _FIRST_STAND_IN}
        first = _FIRST_STAND_IN
        while used & set(range(first, first + len(self.ids))):
            first += len(self.ids)
        if first + len(self.ids) > _LAST_STAND_IN:
            return None
        key = (first, scrubbed)
        if key not in self._stand_ins:
            self._stand_ins[key] = _StandIns(self, first, scrubbed)
        return self._stand_ins[key]


class _StandIns:
    """A copy of a tokenizer that knows each control token as a private-use character.

    Args:
        scrubbed: Whether control tokens are removed from the model's vocabulary too: a Unigram model would
            match them there.
    """

    def __init__(self, control: ControlTokens, first: int, scrubbed: bool) -> None:
        assert control.backend is not None
        self.character = {token: chr(first + n) for n, token in enumerate(sorted(control.ids))}
        characters = {text: self.character[token] for text, token in control.by_text.items()}
        if scrubbed:
            self._tokenizer = _without_pieces(control.backend, characters)
        else:
            self._tokenizer = Tokenizer(control.backend.model)
            if control.backend.normalizer is not None:
                self._tokenizer.normalizer = control.backend.normalizer
            if control.backend.pre_tokenizer is not None:
                self._tokenizer.pre_tokenizer = control.backend.pre_tokenizer
        added = [
            AddedToken(
                self.character.get(token, known.content),
                single_word=known.single_word,
                lstrip=known.lstrip,
                rstrip=known.rstrip,
                normalized=known.normalized,
                special=known.special,
            )
            for token, known in control.added.items()
        ]
        self._tokenizer.add_tokens(added)
        self._ids: dict[int, int] = {}
        """The tokenizer's own token ids by those of the copy, for added tokens."""
        self._ambiguous = False
        for token, one in zip(control.added, added, strict=True):
            own = self._tokenizer.token_to_id(one.content)
            assert own is not None
            self._ids[own] = token
            # A vocabulary with gaps in its numbers: a new token has got the number of another.
            taken = control.backend.model.id_to_token(own)
            self._ambiguous |= taken not in (None, one.content, control.added[token].content)
        self._forgeable = control.ids.keys() - control.unknown

    def encode(self, text: str) -> tuple[list[int], bool]:
        """Token ids, and whether ordinary text may have become a control token all the same."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        forged = any(token in self._forgeable and token not in self._ids for token in ids)
        return [self._ids.get(token, token) for token in ids], forged or self._ambiguous


def _without_pieces(backend: Tokenizer, characters: dict[str, str]) -> Tokenizer:
    """A copy of a tokenizer with pieces of its vocabulary renamed and without added tokens."""
    table = json.loads(backend.to_str())
    model = table["model"]
    renamed = {text: new for text, new in characters.items() if text != model.get("unk_token")}
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in vocabulary]
    elif isinstance(vocabulary, dict):
        model["vocab"] = {renamed.get(piece, piece): number for piece, number in vocabulary.items()}
        if "merges" in model:
            pairs = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
            model["merges"] = [p for p in pairs if not {p[0], p[1], p[0] + p[1]} & renamed.keys()]
    table |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(table))


def _is_control(added: AddedToken, literal_text: str) -> bool:
    text = added.content
    if not text.replace("▁", " ").strip():
        return False
    if added.special or text in _REASONING:
        return True
    if len(text) < _MIN_LENGTH or text.isalnum():
        return False
    return text in literal_text or _LOOKS_LIKE_CONTROL.fullmatch(text) is not None


_known: WeakKeyDictionary[Any, dict[tuple[int, str], ControlTokens]] = WeakKeyDictionary()


def control_tokens(tokenizer: Any, template: ChatTemplate | None) -> ControlTokens:
    """The control tokens of a tokenizer under a template, cached per tokenizer."""
    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    table = _known.setdefault(inner, {})
    key = (len(inner), template.source if template is not None else "")
    if key not in table:
        if len(table) >= _MAX_TEMPLATES:
            table.clear()
        table[key] = ControlTokens(tokenizer, template.literal_text if template is not None else "")
    return table[key]


class Disguise:
    """Replaces control tokens in the contents of one prompt by private-use characters.

    Args:
        contents: Everything that goes into the prompt: private characters in it are not used.
    """

    def __init__(self, control: ControlTokens, contents: Iterable[str]) -> None:
        self._control = control
        used = {c for c in set().union(*contents) if ord(c) >= _FIRST_PRIVATE}
        self._free = (chr(n) for n in range(_FIRST_PRIVATE, _LAST_PRIVATE) if chr(n) not in used)
        self._characters: dict[str, str] = {}
        self._trusted: dict[str, str] = {}
        self._barrier = next(self._free)
        self.used = False
        """Whether any content needed it."""

    def content(self, text: str) -> str:
        """A content without control tokens in it."""
        hidden = self._hide(text)
        core = hidden.strip()
        if not core:
            return f"{self._mark()}{hidden}" if text and self._control.may_join_before(text) else text
        start = hidden.index(core)
        before, after = hidden[:start], hidden[start + len(core) :]
        if self._control.may_join_before(core):
            core = self._mark() + core
        if self._control.may_join_after(core):
            core += self._mark()
        return before + core + after

    def reply(self, text: str, opened: Pair | None) -> str:
        """An earlier reply. Marks around reasoning at its beginning stay: the template takes the reasoning
        out by them.

        Args:
            opened: Marks of a thought that the template itself opens before each reply.
        """
        thought = split_thought(text, opened)
        if thought is None:
            return self.content(text)
        opening, inside, closing, answer = thought
        return opening + self.content(inside) + closing + (self.content(answer) if closing else "")

    def data(self, value: Any) -> Any:
        """Tool definitions or arguments of a call, without control tokens in their texts at any depth."""
        if isinstance(value, str):
            return self.word(value) if value in _SCHEMA_WORDS else self.content(value)
        if isinstance(value, Mapping):
            return {self.data(key): self.data(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.data(one) for one in value]
        return value

    def word(self, text: str) -> str:
        """A word that templates compare with or measure: without barriers, which its neighbours have."""
        return text if self._control.hidden.search(text) is None else self.content(text)

    def trusted(self, text: str) -> str:
        """A character for a text of our own in a content, whose control tokens are ones in the prompt."""
        if text and text not in self._trusted:
            self._trusted[text] = next(self._free)
        return self._trusted.get(text, "")

    def with_trusted(self, text: str) -> str:
        """A rendered text with the texts that ``trusted`` has got."""
        return text.translate({ord(character): original for original, character in self._trusted.items()})

    def restored(self, text: str) -> str:
        """A rendered text with the contents as they were."""
        if not self.used:
            return text
        back = {ord(character): original for original, character in self._characters.items()}
        return text.translate({**back, ord(self._barrier): ""})

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text; only the template's own control tokens are ones."""
        control = self._control
        if not self.used:
            return list(control.inner.encode(text, add_special_tokens=False))
        spans = control.spans(text)
        pieces, at = [], 0
        for _, start, end in spans:
            pieces.append(self.restored(text[at:start]))
            at = end
        pieces.append(self.restored(text[at:]))
        tokens = [token for token, *_ in spans]
        if control.backend is not None and type(control.inner).encode is _plain_encode():
            for scrubbed in (False, True):
                stand_ins = control.stand_ins("".join(pieces), scrubbed)
                if stand_ins is None:
                    break
                marks = [stand_ins.character[token] for token in tokens]
                ids, forged = stand_ins.encode(_interleaved(pieces, marks))
                if not forged:
                    return ids
        return self._encode_in_pieces(pieces, tokens)

    def _encode_in_pieces(self, pieces: Sequence[str], tokens: Sequence[int]) -> list[int]:
        """For tokenizers that are not of the ``tokenizers`` library. What would be a control token all the
        same is broken up by a space.
        """
        ids: list[int] = []
        for piece, token in zip(pieces, [*tokens, None], strict=True):
            if piece:
                ids += self._encode_plain(piece)
            if token is not None:
                ids.append(token)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        control = self._control
        forgeable = control.ids.keys() - control.unknown
        ids: list[int] = []
        for attempt in (text, control.pattern.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text)):
            ids = list(control.inner.encode(attempt, add_special_tokens=False, split_special_tokens=True))
            if not forgeable & set(ids):
                return ids
        return [token for token in ids if token not in forgeable]

    def _hide(self, text: str) -> str:
        for _ in range(_MAX_ROUNDS):
            text, count = self._control.hidden.subn(lambda match: self._private(match[0]), text)
            if not self._control.normalizes:
                return text
            spans = self._control.spans(text)
            if not spans and not count:
                return text
            for _, start, end in reversed(spans):
                text = text[:start] + self._private(text[start:end]) + text[end:]
        return text

    def _private(self, original: str) -> str:
        self.used = True
        if original not in self._characters:
            self._characters[original] = next(self._free)
        return self._characters[original]

    def _mark(self) -> str:
        self.used = True
        return self._barrier


def _interleaved(pieces: Sequence[str], marks: Sequence[str]) -> str:
    return "".join(part for pair in zip(pieces, [*marks, ""], strict=True) for part in pair)


def _plain_encode() -> Any:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    return PreTrainedTokenizerBase.encode
