"""A reply ends at every end-of-sequence token in the model's files, and where its template ends a turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.scripted_model import CHATML, scripted
from tests.engine.talk import greedy, send, user
from tqchat.engine import models
from tqchat.engine.reasoning import named_eos_tokens
from tqchat.engine.session import Session

PROMPT = [user("Hello!")]
NEXT_TURN = "<|im_end|>\n<|im_start|>user\nAnd you?<|im_end|>"
END, START, TEXT_END = 2, 1, 0
NO_EOS: dict[str, Any] = {"tokenizer": {"eos_token": "<|endoftext|>"}, "ends": None}


@pytest.mark.parametrize(
    "made",
    [
        {"tokenizer": {"eos_token": "<|im_end|>"}, "ends": None},
        {**NO_EOS, "config": {"eos_token_id": END}},
        {**NO_EOS, "config": {"eos_token_id": [TEXT_END, END]}, "generation": {"eos_token_id": TEXT_END}},
        {**NO_EOS, "config": {"eos_token_id": TEXT_END}, "generation": {"eos_token_id": [END, None]}},
        {**NO_EOS, "config": {"text_config": {"eos_token_id": END}}},
        {**NO_EOS, "generation": {"eos_token_id": str(END)}},
        NO_EOS,
    ],
    ids=["tokenizer", "config", "list in config", "generation", "nested", "number as text", "template only"],
)
def test_a_reply_never_runs_on_into_the_next_turn(tmp_path: Path, made: dict[str, Any]) -> None:
    made = {**made, "generation": {"do_sample": False, **made.get("generation", {})}}
    folder = scripted(tmp_path / "model", [(PROMPT, "Fine." + NEXT_TURN)], **made)
    done = send(Session(models.load(str(folder))), PROMPT, greedy(40))
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
    ("template", "next_turn", "plain"),
    [
        (PLAIN_MARKS, "<|turn_end|>\n<|turn|>user\nAnd you?", ("<|turn_end|>", "<|turn|>")),
        (PLAIN_MARKS, "\n<|turn|>user\nAnd you?", ("<|turn_end|>", "<|turn|>")),
        (PLAIN_MARKS, "<|turn_end|>\n<|turn|>user\nAnd you?", ()),
        (ALPACA, "\n\n### Instruction:\nAnd you?", ()),
        (VICUNA, " USER: And you?", ()),
        (None, "\n\nUser: And you?", ()),
    ],
    ids=["plain tokens", "mark of the next turn", "marks as text", "headings", "names", "no template"],
)
def test_ends_of_turn_that_are_not_special_tokens(
    tmp_path: Path, template: str | None, next_turn: str, plain: tuple[str, ...]
) -> None:
    folder = scripted(
        tmp_path / "model",
        [(PROMPT, "Fine: <b>all</b> # of it." + next_turn)],
        template=template,
        plain=plain,
    )
    done = send(Session(models.load(str(folder))), PROMPT, greedy(60))
    assert (done.text.strip(), done.stop_reason) == ("Fine: <b>all</b> # of it.", "stop")


def test_a_mark_that_begins_replies_and_user_messages_ends_no_reply(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}<|text|>{{ m.content }}<|text_end|><|im_end|>"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    )
    reply = "<|text|>Fine.<|text_end|><|im_end|><|im_start|>user<|text|>And you?"
    marks = ("<|text|>", "<|text_end|>")
    folder = scripted(tmp_path / "model", [(PROMPT, reply)], template=template, special=marks, **NO_EOS)
    done = send(Session(models.load(str(folder))), PROMPT, greedy(40))
    assert (done.text, done.stop_reason) == ("Fine.", "stop")


def test_files_without_valid_eos_tokens(tmp_path: Path) -> None:
    for content in ("{broken", "[]", "{}", '{"eos_token_id": null}', '{"eos_token_id": [true, -1, "x"]}'):
        (tmp_path / "config.json").write_text(content)
        assert named_eos_tokens(tmp_path) == frozenset()
