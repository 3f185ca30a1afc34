"""A reply ends at every end that the model's files name, and where its chat template ends a turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.scripted_model import CHATML, scripted
from tests.engine.talk import greedy, send, user
from tqchat.engine import models
from tqchat.engine.reasoning import named_ends
from tqchat.engine.session import Session

ASKED = [user("Hello!")]
ON = "<|im_end|>\n<|im_start|>user\nAnd you?<|im_end|>"
END, START, TEXT_END = 2, 1, 0
NOWHERE: dict[str, Any] = {"tokenizer": {"eos_token": "<|endoftext|>"}, "ends": None}


@pytest.mark.parametrize(
    "made",
    [
        {"tokenizer": {"eos_token": "<|im_end|>"}, "ends": None},
        {**NOWHERE, "config": {"eos_token_id": END}},
        {**NOWHERE, "config": {"eos_token_id": [TEXT_END, END]}, "generation": {"eos_token_id": TEXT_END}},
        {**NOWHERE, "config": {"eos_token_id": TEXT_END}, "generation": {"eos_token_id": [END, None]}},
        {**NOWHERE, "config": {"text_config": {"eos_token_id": END}}},
        {**NOWHERE, "generation": {"eos_token_id": str(END)}},
        NOWHERE,
    ],
    ids=["tokenizer", "config", "config's list", "generation", "nested", "a text", "the template alone"],
)
def test_a_reply_never_runs_on_into_the_next_turn(tmp_path: Path, made: dict[str, Any]) -> None:
    made = {**made, "generation": {"do_sample": False, **made.get("generation", {})}}
    folder = scripted(tmp_path / "model", [(ASKED, "Fine." + ON)], **made)
    done = send(Session(models.load(str(folder))), ASKED, greedy(40))
    assert (done.text, done.stop_reason) == ("Fine.", "stop")


PLAIN_MARKS = CHATML.replace("<|im_end|>", "<|turn_end|>").replace("<|im_start|>", "<|turn|>")
ALPACA = (
    "{% for m in messages %}{{ ('### Instruction:\n' if m.role == 'user' else '### Response:\n')"
    " + m.content + '\n\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{{ ('USER: ' if m.role == 'user' else 'ASSISTANT: ') + m.content + ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "on", "plain"),
    [
        (PLAIN_MARKS, "<|turn_end|>\n<|turn|>user\nAnd you?", ("<|turn_end|>", "<|turn|>")),
        (PLAIN_MARKS, "\n<|turn|>user\nAnd you?", ("<|turn_end|>", "<|turn|>")),
        (PLAIN_MARKS, "<|turn_end|>\n<|turn|>user\nAnd you?", ()),
        (ALPACA, "\n\n### Instruction:\nAnd you?", ()),
        (VICUNA, " USER: And you?", ()),
        (None, "\n\nUser: And you?", ()),
    ],
    ids=["plain tokens", "the next turn's mark", "marks of text", "headings", "names", "no template"],
)
def test_ends_that_are_no_special_tokens(
    tmp_path: Path, template: str | None, on: str, plain: tuple[str, ...]
) -> None:
    folder = scripted(
        tmp_path / "model", [(ASKED, "Fine: <b>all</b> # of it." + on)], template=template, plain=plain
    )
    done = send(Session(models.load(str(folder))), ASKED, greedy(60))
    assert (done.text.strip(), done.stop_reason) == ("Fine: <b>all</b> # of it.", "stop")


def test_files_that_name_no_ends(tmp_path: Path) -> None:
    for content in ("{broken", "[]", "{}", '{"eos_token_id": null}', '{"eos_token_id": [true, -1, "x"]}'):
        (tmp_path / "config.json").write_text(content)
        assert named_ends(tmp_path) == frozenset()
