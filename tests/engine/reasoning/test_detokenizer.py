"""Tokens to text, one at a time, for the three kinds of decoders: whole characters and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.scripted_model import scripted, tokenizer_files
from tests.engine.talk import greedy, send, user
from tqchat.engine import models
from tqchat.engine.reasoning.detokenizer import Detokenizer
from tqchat.engine.session import Session

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
DECODERS: dict[str, dict[str, Any] | None] = {
    "byte level": None,
    "naive": {"type": "Sequence", "decoders": [BYTE_LEVEL]},
}


def tokenizer(folder: Path, name: str, **tokens: Any) -> Any:
    from mlx_lm.utils import load_tokenizer

    tokenizer_files(folder, decoder=DECODERS[name], **tokens)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return load_tokenizer(folder)


def text_of(tokenizer: Any, tokens: list[int]) -> str:
    detokenizer = Detokenizer(tokenizer)
    return "".join(detokenizer.add(token) for token in tokens) + detokenizer.flush()


@pytest.mark.parametrize("name", DECODERS)
def test_bytes_that_make_no_character_are_left_out(tmp_path: Path, name: str) -> None:
    made = tokenizer(tmp_path, name, plain=["<two words>", "<tag>"])
    encode = lambda text: made.encode(text, add_special_tokens=False)  # noqa: E731
    fox = encode("🦊")
    assert len(fox) > 1
    for tokens, text in [
        ([*encode("Hello"), 10**6, 2**40, *encode(" there")], "Hello there"),
        ([*encode("a "), *fox, *encode(" b")], "a 🦊 b"),
        ([*encode("Fox "), *fox[:-1]], "Fox "),
        ([*encode("Fox "), *fox, *fox[:-1]], "Fox 🦊"),
        ([*encode("Fox "), *fox[:1], *encode(" and on")], "Fox  and on"),
        ([*encode("x "), *(fox[:1] * 20), *encode("y")], "x y"),
        (encode("a\r\nb\u2028c\n\n  d"), "a\r\nb\u2028c\n\n  d"),
        (encode("say <two words> and <tag>x"), "say <two words> and <tag>x"),
        (encode("the sign \ufffd itself"), "the sign \ufffd itself"),
        ([], ""),
    ]:
        assert text_of(made, tokens) == text


def test_ids_beyond_the_tokenizer_print_nothing(tmp_path: Path) -> None:
    asked = [user("Hi")]
    size = tokenizer_files(tmp_path / "sizes")
    from mlx_lm.utils import load_tokenizer

    (tmp_path / "sizes" / "config.json").write_text('{"model_type": "gpt2"}')
    encode = load_tokenizer(tmp_path / "sizes").encode
    said = [*encode("Hello"), size + 5, *encode(" there"), size, 2]
    folder = scripted(tmp_path / "model", [(asked, said)], spare_ids=16)
    session = Session(models.load(str(folder)))
    done = send(session, asked, greedy(20))
    assert (done.text, done.stop_reason) == ("Hello there", "stop")
    assert done.counts.generated == len(said)


@pytest.mark.parametrize("name", DECODERS)
def test_a_text_that_is_continued_keeps_every_space(tmp_path: Path, name: str) -> None:
    made = tokenizer(tmp_path, name)
    text = "Once upon a  time, a 🦊 ran away.\n  Then it came back. "
    tokens = made.encode(text, add_special_tokens=False)
    for place in range(1, len(tokens)):
        detokenizer = Detokenizer(made, tokens[:place])
        rest = "".join(detokenizer.add(token) for token in tokens[place:]) + detokenizer.flush()
        begun = made.decode(tokens[:place])
        assert "\ufffd" in begun or begun + rest == text
