"""Reasoning on, off or how much: what the chat template is told, and what a model without a switch says."""

from __future__ import annotations

from pathlib import Path

from tests.engine.reasoning.test_reasoning import ASKED, run
from tests.engine.scripted_model import CHATML, scripted
from tests.engine.talk import greedy, of, send, user
from tests.engine.test_worker import SECONDS, Listener
from tqchat.engine import models
from tqchat.engine.commands import Compose, LoadModel, OpenConversation, Send, Thinking
from tqchat.engine.composing import compose
from tqchat.engine.events import Composed, Done, Notice, Opened
from tqchat.engine.models import LoadedModel
from tqchat.engine.session import Session
from tqchat.engine.worker import Engine
from tqchat.paths import Paths

THINK = ("<think>", "</think>")
SWITCH = CHATML + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
OFF = "<think>\n\n</think>\n\n"


def with_switch(folder: Path) -> LoadedModel:
    script = [(ASKED, "<think>\nHm.\n</think>\n\nIt is J.<|im_end|>")]
    path = scripted(folder, script, template=SWITCH, plain=THINK, variables={"enable_thinking": True})
    return models.load(str(path))


def prompt_text(session: Session, done: Done) -> str:
    text: str = session.model.tokenizer.decode(session.tokens[: done.counts.prompt])
    return text


def test_the_switch_is_part_of_the_prompt(tmp_path: Path) -> None:
    model = with_switch(tmp_path / "model")
    assert (model.info.thinking_choices, model.info.thinking_default) == (("off", "on"), "on")
    session = Session(model)
    for choice, off in (("on", False), ("off", True), ("high", False), (None, False)):
        session.thinking = Thinking(choice)  # type: ignore[arg-type]
        events = list(session.send(ASKED, greedy(4)))
        done = events[-1]
        assert isinstance(done, Done)
        assert prompt_text(session, done).endswith(OFF) == off
        assert not of(events, Notice)
        assert done.counts.reused > 0 or choice == "on"


def test_a_model_without_a_switch_says_so_once(tiny: LoadedModel, tmp_path: Path) -> None:
    session = Session(tiny)
    session.thinking = Thinking("high")
    told = [of(session.send(ASKED, greedy(2)), Notice) for _ in range(2)]
    assert [one.text for one in told[0]] == [
        f"Thinking is set to high, but {tiny.info.name} has no switch for its reasoning."
    ]
    assert told[1] == []
    session.thinking = Thinking("off")
    assert of(session.send(ASKED, greedy(2)), Notice) == [], "it does not reason anyway"
    always = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
    folder = scripted(
        tmp_path / "model", [(ASKED, "Hm.\n</think>\nJ.<|im_end|>")], template=always, plain=THINK
    )
    session = Session(models.load(str(folder)))
    session.thinking = Thinking("off")
    (notice,) = of(session.send(ASKED, greedy(2)), Notice)
    assert "no switch" in notice.text


def test_a_title_is_asked_for_without_reasoning_and_a_thought_is_none(tmp_path: Path) -> None:
    import threading

    always = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
    thought = "Let me think about a good title for this conversation. " * 8
    folder = scripted(tmp_path / "model", [(ASKED, thought)], template=always, plain=THINK)
    model = models.load(str(folder))
    *_, composed = compose(model, "fp16", Compose("one", "title", tuple(ASKED), 12), threading.Event())
    assert isinstance(composed, Composed)
    assert not composed.text.startswith("Let me"), "the thought was closed before it began"
    session = Session(model)
    assert send(session, ASKED, greedy(20)).text == ""


def test_a_conversation_s_choice_reaches_the_template_and_its_cache(tmp_path: Path, paths: Paths) -> None:
    with_switch(tmp_path / "model")
    heard = Listener()
    engine = Engine(heard, paths=paths)
    engine.start()
    try:
        engine.submit(LoadModel(str(tmp_path / "model")))
        off = Thinking("off")
        said = (user("Which letter is the tenth of the alphabet? " * 4),)
        engine.submit(Send("one", said, "fp16", greedy(4), thinking=off))
        first = heard.next(Done)
        engine.submit(Send("two", tuple(ASKED), "fp16", greedy(4)))
        heard.next(Done)
        engine.submit(OpenConversation("one", said, "fp16", thinking=off))
        heard.next(Opened)
        engine.submit(Send("one", said, "fp16", greedy(4), thinking=off))
        again = heard.next(Done)
        assert again.counts.prompt == first.counts.prompt
        assert again.counts.prefilled < first.counts.prefilled
    finally:
        engine.shutdown(SECONDS)


def test_run_takes_the_choice_from_the_command_line_and_the_settings(tmp_path: Path) -> None:
    with_switch(tmp_path / "model")
    question, model = ASKED[0].content, str(tmp_path / "model")
    common = ("--model", model, "--max-tokens", "30", "--json")
    on = run(question, *common, "--think", "on", home=tmp_path)
    off = run(question, *common, "--think", "off", home=tmp_path)
    assert '"reasoning": "Hm."' in on.stdout, on.stderr
    assert '"reasoning": ""' in off.stdout, off.stderr
    budget = run(question, *common, "--think-budget", "1", home=tmp_path)
    assert '"reasoning": "Hm."' not in budget.stdout
    (tmp_path / "config").mkdir(exist_ok=True)
    (tmp_path / "config" / "config.toml").write_text('thinking = "off"\n')
    assert run(question, *common, home=tmp_path).stdout.count('"reasoning": ""') == 1
    wrong = run(question, *common, "--think", "much", home=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr == "tqchat: --think is much, but must be on, off, low, medium or high.\n"
