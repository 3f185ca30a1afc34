"""Small tokenizers of the kinds that models have, built on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LINES = [
    "The fox sat in the garden and thought about the river.",
    "What does the end of a turn mean to you? Answer in one word, please.",
    "user assistant system model think start end of turn im_end im_start message channel final analysis",
    "def f(x):\n    return x + 1\n\n\nprint(f(2))\n",
    "Today Date: 26 Jul 2024\n\nHello! How are you?\n",
    "<div>1 < 2 && 3 > 2</div> [x] {y} | z <| |> </s> <s>",
]


def byte_level(special: Sequence[str] = (), plain: Sequence[str] = (), **options: Any) -> Any:
    """Byte-level BPE, as in GPT-2, Llama 3 and Qwen."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"), "isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(LINES, trainer)
    return wrapped(backend, special, plain, **options)


def sentencepiece_bpe(
    special: Sequence[str] = (), plain: Sequence[str] = (), *, metaspace: bool = False, **options: Any
) -> Any:
    """SentencePiece BPE with byte fallback, as in Llama 2 and Gemma.

    Args:
        metaspace: Whether the first word's space is put there once for the whole text (Mistral), not after
            every control token.
    """
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(
        [*LINES, *("▁" + line for line in LINES)],
        trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>"], show_progress=False),
    )
    inside = ["<unk>", "<s>", "</s>", *special, *plain, *(f"<0x{n:02X}>" for n in range(256))]
    inside += [piece for piece in sorted(trained.get_vocab()) if piece not in inside]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(inside))}
    merges = []
    for pair in json.loads(trained.to_str())["model"]["merges"]:
        merges.append(tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")))
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrapped(backend, ["<unk>", "<s>", "</s>", *special], plain, **options)


def unigram(special: Sequence[str] = (), plain: Sequence[str] = (), **options: Any) -> Any:
    """Unigram, whose model finds control tokens in its own vocabulary too."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace("▁", prepend_scheme="first")
    known = ["<unk>", "<s>", "</s>", *special, *plain]
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=known,
        unk_token="<unk>",
        initial_alphabet=[chr(c) for c in range(33, 127)],
        show_progress=False,
    )
    backend.train_from_iterator(LINES * 4, trainer)
    return wrapped(backend, ["<unk>", "<s>", "</s>", *special], plain, **options)


def wrapped(
    backend: Tokenizer,
    special: Sequence[str | AddedToken],
    plain: Sequence[str | AddedToken] = (),
    template: str | None = None,
    **options: Any,
) -> Any:
    """mlx-lm's wrapper of a tokenizer with added tokens, special ones and others."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from transformers import PreTrainedTokenizerFast

    for tokens, is_special in ((special, True), (plain, False)):
        backend.add_tokens(
            [
                one if isinstance(one, AddedToken) else AddedToken(one, normalized=False, special=is_special)
                for one in tokens
            ]
        )
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    fast.chat_template = template
    return TokenizerWrapper(fast)


def word_piece(special: Sequence[str] = (), plain: Sequence[str] = (), **options: Any) -> Any:
    """WordPiece with BERT's normaliser, which drops private characters."""
    words = ["[UNK]", *sorted({char for line in LINES for char in line.lower() if char.strip()})]
    words += [f"##{word}" for word in words[1:]]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return wrapped(backend, ["[UNK]", *special], plain, unk_token="[UNK]", **options)
