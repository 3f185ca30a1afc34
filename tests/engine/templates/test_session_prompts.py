"""Prompts on their way through sessions and the engine: the clock, the plain form."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.engine.talk import assistant, greedy, of, send, user
from tests.engine.test_worker import SECONDS, Listener
from tqchat.engine import backend, models
from tqchat.engine.commands import LoadModel, OpenConversation, Send, SetScheme
from tqchat.engine.events import Done, Notice, Opened, SchemeChanged
from tqchat.engine.session import Session
from tqchat.engine.worker import Engine
from tqchat.paths import Paths
from tqchat.store.vault import Vault

DATED = (
    "Today is {{ strftime_now('%d %b %Y, %H:%M:%S') }}.\n{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DAY = 86_400.0


def model(folder: Path, source: Path, template: str | None) -> Any:
    shutil.copytree(source, folder)
    loaded = models.load_folder(folder, str(folder), backend.prepare())
    loaded.tokenizer.chat_template = template
    return loaded


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [20_000 * DAY]
    for place in ("tqchat.engine.templates.sandbox.wall_clock", "tqchat.engine.prompts.wall_clock"):
        monkeypatch.setattr(place, lambda: now[0])
    return now


def test_a_clock_costs_no_cache_within_a_session(
    tmp_path: Path, llama_folder: Path, clock: list[float]
) -> None:
    session = Session(model(tmp_path / "model", llama_folder, DATED))
    first = send(session, [user("Hello")], greedy(4))
    clock[0] += DAY + 1
    second = send(session, [user("Hello"), assistant(first.text), user("More")], greedy(4))
    assert second.counts.reused >= first.counts.prompt - 1


@pytest.mark.parametrize("known", [True, False])
def test_a_clock_costs_no_saved_cache_where_the_beginning_is_known(
    tmp_path: Path, llama_folder: Path, clock: list[float], known: bool
) -> None:
    dated = model(tmp_path / "model", llama_folder, DATED)
    began = 19_000 * DAY if known else None
    vault = Vault(tmp_path / "caches")
    session = Session(dated, began=began)
    done = send(session, [user("Hello")], greedy(4))
    session.save(vault, "one")
    clock[0] += DAY
    said = [user("Hello"), assistant(done.text)]
    restored, _ = Session(dated, began=began).restore(vault, "one", said)
    assert (restored >= done.counts.prompt - 1) is known


def test_a_model_without_a_template_says_so_once(tmp_path: Path, llama_folder: Path) -> None:
    session = Session(model(tmp_path / "model", llama_folder, None))
    events = list(session.send([user("Hello")], greedy(4)))
    (notice,) = of(events, Notice)
    assert "no chat template" in notice.text
    done = events[-1]
    assert isinstance(done, Done)
    again = list(session.send([user("Hello"), assistant(done.text), user("More")], greedy(4)))
    assert not of(again, Notice)


def test_the_engine_hands_a_conversations_beginning_to_the_template(
    tmp_path: Path, llama_folder: Path, paths: Paths
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    (folder / "chat_template.jinja").write_text(DATED)
    began = 19_000 * DAY + 3_661
    prompts = []
    for command in (
        Send("one", (user("Hello"),), "fp16", greedy(1), began=began),
        OpenConversation("one", (user("Hello"),), "fp16", began=began),
        SetScheme("one", "fp16", True, (user("Hello"),), began=began),
    ):
        heard = Listener()
        engine = Engine(heard, paths=paths)
        engine.start()
        engine.submit(LoadModel(str(folder)))
        engine.submit(command)
        if isinstance(command, OpenConversation):
            heard.next(Opened)
            engine.submit(Send("one", (user("Hello"),), "fp16", greedy(1)))
        heard.next(SchemeChanged if isinstance(command, SetScheme) else Done)
        current = engine._current
        assert current is not None
        prompts.append(current.session.model.tokenizer.decode(list(current.session.tokens)))
        engine.shutdown(SECONDS)
    assert all(one.startswith("Today is 08 Jan 2022, 01:01:01.") for one in prompts)


def test_a_prompt_that_takes_long_is_stopped_like_a_reply(tmp_path: Path, llama_folder: Path) -> None:
    slow = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
    session = Session(model(tmp_path / "model", llama_folder, DATED))
    first = send(session, [user("Hello")], greedy(4))
    session.model.tokenizer.chat_template = slow
    stop = threading.Event()
    stop.set()
    done = send(session, [user("Hello"), assistant(first.text), user("More")], greedy(4), stop)
    assert (done.stop_reason, done.text) == ("stopped", "")
    session.model.tokenizer.chat_template = DATED
    again = send(session, [user("Hello"), assistant(first.text), user("More")], greedy(4))
    assert again.counts.reused >= first.counts.prompt - 1, "the cache is still usable"
