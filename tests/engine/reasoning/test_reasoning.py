"""Replies are told apart into reasoning and answer, whatever marks a model writes around its thoughts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine.scripted_model import CHATML, scripted, tokenizer_files
from tests.engine.talk import assistant, greedy, of, send, user
from tqchat.engine import models
from tqchat.engine.commands import ChatMessage, Thinking
from tqchat.engine.events import Done, TextDelta
from tqchat.engine.models import LoadedModel
from tqchat.engine.reasoning import Ends, ReplyFormat, ReplyStream, Span
from tqchat.engine.session import Session

ASKED = [user("Which letter is the tenth?")]
THOUGHT, ANSWER = "Count: A, B.\n\nIt < K. So J.", "It is **J**, a <b>letter</b>."
HARMONY = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] }}"
    "{{ ('<|channel|>final' if m['role'] == 'assistant' else '') }}"
    "{{ '<|message|>' + m['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
HARMONY_TOKENS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>")


def opened(mark: str) -> str:
    """A template that opens the thought itself."""
    return CHATML.replace("assistant\n' }}{% endif", f"assistant\n{mark}' }}}}{{% endif")


@dataclass(frozen=True)
class Kind:
    """A way to mark reasoning: the raw reply, and what the tokenizer and the template are."""

    reply: str
    template: str = CHATML
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()


def tags(opening: str, closing: str) -> str:
    return f"{opening}\n{THOUGHT}\n{closing}\n\n{ANSWER}"


THINK = ("<think>", "</think>")
OPENED = f"{THOUGHT}\n</think>\n\n{ANSWER}"
KINDS = {
    "think as plain tokens": Kind(tags(*THINK), plain=THINK),
    "think as special tokens": Kind(tags(*THINK), special=THINK),
    "think as text": Kind(tags(*THINK)),
    "think opened by the template": Kind(
        f"{THOUGHT}\n</think>\n\n{ANSWER}", opened("<think>\n"), plain=THINK
    ),
    "think as text, opened by the template": Kind(OPENED, opened("<think>\n")),
    "thinking": Kind(tags("<thinking>", "</thinking>")),
    "Magistral": Kind(f"[THINK]{THOUGHT}[/THINK]{ANSWER}", special=("[THINK]", "[/THINK]")),
    "Magistral as text": Kind(f"[THINK]{THOUGHT}[/THINK]{ANSWER}"),
    "Seed": Kind(tags("<seed:think>", "</seed:think>"), plain=("<seed:think>", "</seed:think>")),
    "Kimi": Kind(f"◁think▷{THOUGHT}◁/think▷{ANSWER}"),
    "Kimi as tokens": Kind(f"◁think▷{THOUGHT}◁/think▷{ANSWER}", special=("◁think▷", "◁/think▷")),
    "Gemma 4": Kind(f"<|channel>thought\n{THOUGHT}<channel|>{ANSWER}", special=("<|channel>", "<channel|>")),
    "MiniMax M3": Kind(tags("<mm:think>", "</mm:think>"), plain=("<mm:think>", "</mm:think>")),
    "Hunyuan 3": Kind(tags("<think:next>", "</think:next>"), plain=("<think:next>", "</think:next>")),
    "Hunyuan with an answer's marks": Kind(f"<think>\n{THOUGHT}\n</think>\n<answer>\n{ANSWER}\n</answer>"),
    "Granite 3.3": Kind(f"<think>{THOUGHT}</think><response>{ANSWER}</response>"),
    "Granite 3.2": Kind(
        f"Here is my thought process:\n{THOUGHT}\nHere is my response:\n{ANSWER}",
        CHATML + "{# Here is my thought process: Here is my response: #}"
        "{% if thinking %}{{ 'Here is my thought process: Here is my response:' }}{% endif %}",
    ),
    "Apriel": Kind(
        f"{THOUGHT}\n[BEGIN FINAL RESPONSE]\n{ANSWER}\n[END FINAL RESPONSE]\n",
        opened("Here are my reasoning steps:\n")
        + "{% if system %}[BEGIN FINAL RESPONSE] ... [END FINAL RESPONSE]{% endif %}",
    ),
    "Command A": Kind(
        f"<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>",
        special=("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    "Apertus": Kind(
        f"<|inner_prefix|>{THOUGHT}<|inner_suffix|>{ANSWER}", special=("<|inner_prefix|>", "<|inner_suffix|>")
    ),
    "Harmony": Kind(
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|>"
        f"<|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>",
        HARMONY,
        HARMONY_TOKENS,
    ),
    "Harmony that ends as its template does": Kind(
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|>"
        f"<|start|>assistant<|channel|>final<|message|>{ANSWER}<|end|><|start|>user<|message|>Hm?",
        HARMONY,
        HARMONY_TOKENS,
    ),
    "Solar": Kind(
        f"<|think|>{THOUGHT}<|end|><|begin|>assistant<|content|>{ANSWER}",
        special=("<|begin|>", "<|think|>", "<|content|>", "<|end|>"),
    ),
    "Kimi K3": Kind(
        f"<|open|>think<|sep|>{THOUGHT}<|close|>think<|sep|><|open|>response<|sep|>{ANSWER}"
        "<|close|>response<|sep|>",
        special=("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
    ),
    "Muse": Kind(
        f" to=self<|message|>{THOUGHT}<|eom|><|start|>assistant to=user<|message|>{ANSWER}<|eot|>",
        special=("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"),
    ),
}
CONTROL = (
    "think",
    "THINK",
    "channel",
    "analysis",
    "<|",
    "|>",
    "▷",
    "response>",
    "answer>",
    "to=",
    "Here is my",
    "FINAL RESPONSE",
)


def load(folder: Path, kind: Kind, *, reply: str | None = None) -> LoadedModel:
    said = (kind.reply if reply is None else reply) + "<|im_end|>"
    path = scripted(folder, [(ASKED, said)], template=kind.template, special=kind.special, plain=kind.plain)
    return models.load(str(path))


def tokenizer_of(folder: Path, kind: Kind) -> ReplyFormat:
    from mlx_lm.utils import load_tokenizer

    tokenizer_files(folder, kind.template, special=kind.special, plain=kind.plain)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = load_tokenizer(folder)
    return ReplyFormat(tokenizer, Ends(frozenset(tokenizer.eos_token_ids)))


def prompt_of(format: ReplyFormat) -> list[int]:
    from tqchat.engine.templates import render

    return render(format.tokenizer, ASKED)


def run_through(stream: ReplyStream, tokens: Sequence[int]) -> list[Span]:
    return [span for token in tokens for span in stream.add(token)]


@pytest.mark.parametrize("name", KINDS)
def test_a_model_s_marks_never_reach_the_reply(tmp_path: Path, name: str) -> None:
    session = Session(load(tmp_path / "model", KINDS[name]))
    events = list(session.send(ASKED, greedy(200)))
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.reasoning, done.text.strip()) == (THOUGHT, ANSWER)
    assert done.stop_reason == "stop"
    assert 0 < done.reasoning_tokens < done.counts.generated
    assert done.reasoning_seconds > 0
    deltas = of(events, TextDelta)
    assert "".join(delta.text for delta in deltas if delta.part == "reasoning") == done.reasoning
    assert "".join(delta.text for delta in deltas if delta.part == "answer") == done.text


@pytest.mark.parametrize("name", KINDS)
def test_a_reply_cut_at_any_token_shows_no_mark_and_goes_on(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    format = tokenizer_of(tmp_path, kind)
    prompt = prompt_of(format)
    tokens = format.tokenizer.encode(kind.reply, add_special_tokens=False)
    for cut in range(len(tokens) + 1):
        stream, rest = ReplyStream(format, prompt), ReplyStream(format, prompt)
        run_through(stream, tokens[:cut])
        stream.finish()
        assert THOUGHT.startswith(stream.reasoning)
        assert ANSWER.startswith(stream.text.strip()) or stream.text.strip() == ANSWER
        assert not any(mark in stream.reasoning + stream.text for mark in CONTROL)
        rest.begin_after(tokens[:cut])
        run_through(rest, tokens[cut:])
        rest.finish()
        if "as its template does" not in name:
            assert stream.reasoning + rest.reasoning == THOUGHT
            assert (stream.text + rest.text).strip() == ANSWER


def test_only_the_end_of_a_thought_is_marked(tmp_path: Path) -> None:
    kind = Kind(OPENED, plain=THINK)
    events = list(Session(load(tmp_path / "model", kind)).send(ASKED, greedy(200)))
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.reasoning, done.text, done.takes_answer) == (THOUGHT, ANSWER, True)
    assert sum(delta.takes_answer for delta in of(events, TextDelta)) == 1


SPEAKS_OF_IT = "Between <think> and </think>, as in:\n```\n<think>\nHm\n</think>\n```\nOpen <think>?"


@pytest.mark.parametrize("opens", ["", "<think>\n", "<think>\n\n</think>\n\n"])
def test_an_answer_behind_a_thought_may_speak_of_its_marks(tmp_path: Path, opens: str) -> None:
    format = tokenizer_of(tmp_path, Kind("", opened(opens), plain=THINK))
    thought = "" if "</" in opens else "Count.\n</think>\n\n"
    reply = ("<think>\n" if not opens else "") + thought + SPEAKS_OF_IT + "\n<think>\nMore.\n</think>\nSo."
    stream = ReplyStream(format, prompt_of(format))
    spans = run_through(stream, format.tokenizer.encode(reply, add_special_tokens=False)) + stream.finish()
    assert stream.reasoning == ("Count.\n\nMore." if thought else "More.")
    assert stream.text.strip().startswith(SPEAKS_OF_IT) and stream.text.endswith("So.")
    assert "".join(one.text for one in spans if one.part == "answer") == stream.text


@pytest.mark.parametrize("plain", [(), THINK])
@pytest.mark.parametrize(
    "reply",
    [
        "Plain < text, [square] and <b>bold</b>.",
        "<thinker> is no mark.",
        "In HTML, `<thinking>` is no element.\nNor is </b>.",
        "  Spaces first.",
        "<",
        "The mark ◁think▷ is Kimi's.",
        "```xml\n<reasoning id='1'>\nNone.\n</reasoning>\n```",
        "Write:\n```\n</thinking>\n```\nand go on.",
        "Use the `<think>` tag, then `</think>`.",
        "Write <think> before it and </think> behind.\n</think>\nis the end.",
        "The end is `</think>`, as here:\n```\nHm.</think>\n```\nSo.",
        "An example:\n```xml\n<think>\nHm\n</think>\n```\nSo.",
    ],
)
def test_what_is_no_mark_is_text(tmp_path: Path, reply: str, plain: tuple[str, ...]) -> None:
    format = tokenizer_of(tmp_path, Kind("", plain=plain))
    stream = ReplyStream(format, prompt_of(format))
    run_through(stream, format.tokenizer.encode(reply, add_special_tokens=False))
    stream.finish(cut=False)
    assert (stream.reasoning, stream.text) == ("", reply.removeprefix(" "))


@pytest.mark.parametrize("special", [(), THINK])
def test_a_reply_may_think_again_at_the_start_of_a_line(tmp_path: Path, special: tuple[str, ...]) -> None:
    kind = Kind("", special=special, plain=() if special else THINK)
    format = tokenizer_of(tmp_path, kind)
    stream = ReplyStream(format, prompt_of(format))
    reply = "I shall look.\n\n<think>\nHm.\n</think>\n\nIt is J."
    run_through(stream, format.tokenizer.encode(reply, add_special_tokens=False))
    stream.finish(cut=False)
    assert (stream.reasoning, stream.text.split()) == ("Hm.", ["I", "shall", "look.", "It", "is", "J."])


@pytest.mark.parametrize("reply", ["Hm.</think>It is J.", "Hm `x`.\n</think>It is J."])
def test_a_thought_may_end_within_a_line(tmp_path: Path, reply: str) -> None:
    format = tokenizer_of(tmp_path, Kind("", plain=THINK))
    stream = ReplyStream(format, prompt_of(format))
    run_through(stream, format.tokenizer.encode(reply, add_special_tokens=False))
    stream.finish(cut=False)
    assert (stream.reasoning, stream.text) == (reply.partition("</think>")[0].strip(), "It is J.")


def test_a_thought_that_the_prompt_has_closed_is_over(tmp_path: Path) -> None:
    kind = Kind("", opened("<think>\n\n</think>\n\n"), plain=THINK)
    format = tokenizer_of(tmp_path, kind)
    stream = ReplyStream(format, prompt_of(format))
    assert not stream.thinking
    run_through(stream, format.tokenizer.encode(ANSWER, add_special_tokens=False))
    stream.finish()
    assert (stream.reasoning, stream.text) == ("", ANSWER)


def test_a_reply_cut_while_thinking_is_thinking_and_goes_on_inside(tmp_path: Path) -> None:
    model = load(tmp_path / "model", KINDS["think opened by the template"])
    for held in (True, False):
        session = Session(model)
        cut = send(session, ASKED, greedy(6))
        assert cut.text == "" and cut.reasoning and THOUGHT.startswith(cut.reasoning)
        said = ChatMessage("assistant", "", cut.reasoning)
        *_, rest = (session if held else Session(model)).send([*ASKED, said], greedy(200), continues=True)
        assert isinstance(rest, Done)
        assert rest.text == ANSWER
        if held:
            assert cut.reasoning + rest.reasoning == THOUGHT
            assert rest.counts.prefilled == 1


def test_a_reply_cut_in_its_answer_goes_on_behind_its_thought(tmp_path: Path) -> None:
    model = load(tmp_path / "model", KINDS["Harmony"])
    whole = send(Session(model), ASKED, greedy(200))
    session = Session(model)
    cut = send(session, ASKED, greedy(whole.counts.generated - 6))
    assert cut.reasoning == THOUGHT and cut.text
    said = ChatMessage("assistant", cut.text, cut.reasoning)
    for other in (session, Session(model)):
        *_, rest = other.send([*ASKED, said], greedy(200), continues=True)
        assert isinstance(rest, Done)
        assert (rest.reasoning, cut.text + rest.text) == ("", ANSWER)


def test_marks_in_what_a_reply_said_do_not_open_a_thought_when_it_goes_on(tmp_path: Path) -> None:
    from tqchat.engine.reasoning import unfinished_reply

    format = tokenizer_of(tmp_path, Kind("", special=THINK))
    prompt = prompt_of(format)
    said = assistant("The mark <think> opens, <|im_end|> ends.")
    tokens = unfinished_reply(format, prompt, said, [])
    assert format.tokenizer.decode(tokens) == said.content
    stream = ReplyStream(format, prompt)
    run_through(stream, tokens)
    assert not stream.thinking
    assert not any(stream.is_end(token) for token in tokens)


@pytest.mark.parametrize("name", ["think as plain tokens", "Harmony", "think as text", "Gemma 4"])
def test_a_thought_over_its_budget_is_closed(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    model = load(tmp_path / "model", kind, reply=kind.reply.partition(THOUGHT)[0] + "so " * 100)
    for budget in (0, 1, 12):
        session = Session(model)
        session.thinking = Thinking(budget=budget)
        done = send(session, ASKED, greedy(60))
        assert done.counts.generated == 60 and done.stop_reason == "length"
        assert done.text.startswith("so so") or done.text.startswith("o so")
        assert done.reasoning.count("so") <= budget
        assert done.reasoning_tokens <= budget + 24
        assert len(session.tokens) == done.counts.prompt + 60


def test_a_draft_model_changes_neither_thought_nor_budget(tmp_path: Path) -> None:
    kind = KINDS["think as plain tokens"]
    model = load(tmp_path / "model", kind)
    draft = load(tmp_path / "draft", kind)
    plain, drafted = Session(model), Session(model, draft=draft)
    one, other = send(plain, ASKED, greedy(200)), send(drafted, ASKED, greedy(200))
    assert (one.text, one.reasoning) == (other.text, other.reasoning) == (ANSWER, THOUGHT)
    assert other.counts.accepted > 10
    plain.thinking = drafted.thinking = Thinking(budget=7)
    one, other = send(plain, ASKED, greedy(40)), send(drafted, ASKED, greedy(40))
    assert (one.text, one.reasoning) == (other.text, other.reasoning)
    assert one.reasoning_tokens == other.reasoning_tokens
    both = min(len(plain.tokens), len(drafted.tokens))
    assert both >= one.counts.prompt + one.counts.generated - 1
    assert plain.tokens[:both] == drafted.tokens[:both]


def test_a_later_turn_is_not_fed_the_thought(tmp_path: Path) -> None:
    kind = KINDS["think as plain tokens"]
    more = [*ASKED, ChatMessage("assistant", ANSWER, THOUGHT), user("And the next?")]
    folder = scripted(
        tmp_path / "model",
        [(ASKED, f"{kind.reply}<|im_end|>"), (more, "It is K.<|im_end|>")],
        plain=THINK,
    )
    session = Session(models.load(str(folder)))
    first = send(session, ASKED, greedy(200))
    second = send(session, more, greedy(200))
    assert (second.text, second.reasoning) == ("It is K.", "")
    assert second.counts.reused >= first.counts.prompt
    assert THOUGHT not in session.model.tokenizer.decode(session.tokens)


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tqchat", "run", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"TQCHAT_HOME": str(home)},
    )


def test_run_prints_the_answer_alone(tmp_path: Path) -> None:
    question = ASKED[0].content
    for name in ("Harmony", "think opened by the template"):
        load(tmp_path / name, KINDS[name])
        model = ("--model", str(tmp_path / name))
        plain = run(question, *model, "--show-thinking", home=tmp_path)
        assert (plain.returncode, plain.stdout) == (0, ANSWER + "\n"), plain.stderr
        assert THOUGHT in plain.stderr
        told = json.loads(run(question, *model, "--json", home=tmp_path).stdout)
        assert (told["reply"], told["reasoning"]) == (ANSWER, THOUGHT)
    cut = run(question, *model, "--max-tokens", "6", home=tmp_path)
    assert cut.stdout.strip() == ""
    assert "before its answer" in cut.stderr


def test_run_prints_no_reasoning_whose_end_alone_is_marked(tmp_path: Path) -> None:
    load(tmp_path / "model", Kind(OPENED, plain=THINK))
    said = run(ASKED[0].content, "--model", str(tmp_path / "model"), "--show-thinking", home=tmp_path)
    assert (said.returncode, said.stdout) == (0, ANSWER + "\n"), said.stderr
    assert THOUGHT in said.stderr
    load(tmp_path / "plain", Kind(ANSWER, plain=THINK))
    assert run(ASKED[0].content, "--model", str(tmp_path / "plain"), home=tmp_path).stdout == ANSWER + "\n"


def test_run_prints_the_whole_of_a_reply_that_speaks_of_the_marks(tmp_path: Path) -> None:
    kind = Kind("Use the `<think>` tag: all up to `</think>` is hidden.", plain=THINK)
    load(tmp_path / "model", kind)
    said = run(ASKED[0].content, "--model", str(tmp_path / "model"), home=tmp_path)
    assert (said.returncode, said.stdout) == (0, kind.reply + "\n"), said.stderr
