"""Checks the tokens that a tokenizer's files list, before libraries build tables of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqchat.engine.hub import model_folder
from tqchat.text import shown_value

MAX_TOKEN_CHARS = 2_000
"""A special token takes thousands of times its length while text is searched for it."""
MAX_TOKEN_ID = 1 << 24
"""Detokenizers build a list up to the largest id."""

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def check(folder: Path) -> None:
    """Check the lengths of special tokens and all ids.

    Raises:
        NotAModel: if one is beyond what any tokenizer has.
    """
    for name in _FILES:
        path = folder / name
        if not path.is_file():
            continue
        table = model_folder.read_json(path)
        for token in _special_tokens(table):
            if len(token) > MAX_TOKEN_CHARS:
                raise model_folder.NotAModel(
                    f"{path} has a token of {len(token):,} characters ({shown_value(token, 20)}): "
                    "download or copy the model again."
                )
        for number in _ids(name, table):
            if type(number) is not int or not 0 <= number <= MAX_TOKEN_ID:
                raise model_folder.NotAModel(
                    f"{path} has a token with the id {shown_value(number, 20)}: "
                    "download or copy the model again."
                )


def _special_tokens(table: dict[str, Any]) -> Iterator[str]:
    """The texts of special and added tokens, wherever they are listed."""
    for key, value in table.items():
        if key.endswith(("_token", "_tokens", "_tokens_decoder")):
            yield from _texts(value)
    if all(type(value) is int for value in table.values()):
        yield from table  # added_tokens.json


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _ids(name: str, table: dict[str, Any]) -> Iterator[Any]:
    if name == "added_tokens.json":
        yield from table.values()
        return
    added = table.get("added_tokens")
    for one in added if isinstance(added, list) else ():
        if isinstance(one, dict) and "id" in one:
            yield one["id"]
    decoder = table.get("added_tokens_decoder")
    for key in decoder if isinstance(decoder, dict) else ():
        yield int(key) if key.isdecimal() and key.isascii() and len(key) < 20 else key
    model = table.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from vocabulary.values()
