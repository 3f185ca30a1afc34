"""Conversations with LoRA adapters of their own in one engine: the right one, and never the other's cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters import train_adapter, write_adapter
from tests.engine.talk import greedy, user
from tests.engine.talk import send as ask
from tests.engine.test_worker import SECONDS, Listener
from tests.models import tiny_llama
from tqchat.engine import models
from tqchat.engine.commands import NO_ADAPTER, Compose, LoadModel, OpenConversation, Send, SetScheme
from tqchat.engine.events import Composed, Done, Failed, ModelFailed, ModelReady, Opened, Saved, SchemeChanged
from tqchat.engine.worker import Engine
from tqchat.paths import Paths

PIRATE, POET, FULL = "pirate", "poet", "full"
QUESTION = (user("Where does the treasure lie?"),)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> dict[str, str]:
    """A trained LoRA, a random DoRA and a full fine-tune of one model."""
    place = tmp_path_factory.mktemp("adapters")
    train_adapter(place / PIRATE, llama_folder, "Arr! The treasure lies under the old palm tree.")
    write_adapter(place / POET, llama_folder, kind="dora", seed=7)
    write_adapter(place / FULL, llama_folder, kind="full")
    return {name: str(place / name) for name in (PIRATE, POET, FULL)}


@pytest.fixture(scope="module")
def expected(folders: dict[str, str], llama_folder: Path) -> dict[str, str]:
    """The reply of the model loaded with each adapter alone."""
    from tqchat.engine.session import Session

    said = {}
    for name, folder in (*folders.items(), (NO_ADAPTER, NO_ADAPTER)):
        loaded = models.load(str(llama_folder), adapter=folder)
        said[name] = ask(Session(loaded, "turbo0v4"), QUESTION, greedy(12)).text
    assert len(set(said.values())) == len(said), "each adapter changes the reply"
    return said


@pytest.fixture
def heard() -> Listener:
    return Listener()


@pytest.fixture
def engine(heard: Listener, paths: Paths, llama_folder: Path) -> Iterator[Engine]:
    engine = Engine(heard, paths=paths)
    engine.start()
    engine.submit(LoadModel(str(llama_folder)))
    heard.next(ModelReady)
    yield engine
    engine.shutdown(SECONDS)


def send(conversation: str, adapter: str | None) -> Send:
    return Send(conversation, QUESTION, "turbo0v4", greedy(12), adapter=adapter)


def reopen(conversation: str, adapter: str | None) -> OpenConversation:
    return OpenConversation(conversation, QUESTION, "turbo0v4", adapter=adapter)


def test_each_conversation_is_answered_with_its_own(
    engine: Engine, heard: Listener, folders: dict[str, str], expected: dict[str, str]
) -> None:
    order = [PIRATE, POET, NO_ADAPTER, PIRATE, FULL, NO_ADAPTER, FULL, PIRATE, POET, NO_ADAPTER]
    for turn, name in enumerate(order):
        engine.submit(send(f"{turn}", folders.get(name, NO_ADAPTER)))
        done = heard.next(Done)
        assert done.text == expected[name], (turn, name)
        assert done.model == ("llama0" if name == NO_ADAPTER else f"llama0 + {name}")
    assert not heard.all(Failed)


def test_a_cache_is_restored_under_its_own_adapter_and_under_no_other(
    engine: Engine, heard: Listener, folders: dict[str, str], expected: dict[str, str]
) -> None:
    for name in (PIRATE, POET):
        engine.submit(send(name, folders[name]))
        tokens = heard.next(Done).report.tokens
        heard.next(Saved)
    for name in (PIRATE, POET):
        engine.submit(reopen(name, folders[name]))
        opened = heard.next(Opened)
        assert opened.restored and opened.reason is None
        assert opened.restored >= tokens - 20
    for name, other in ((PIRATE, POET), (POET, PIRATE), (PIRATE, NO_ADAPTER)):
        engine.submit(reopen(name, folders.get(other, NO_ADAPTER)))
        opened = heard.next(Opened)
        assert (opened.restored, "another model" in (opened.reason or "")) == (0, True)
        engine.submit(send(name, folders.get(other, NO_ADAPTER)))
        done = heard.next(Done)
        assert (done.text, done.counts.restored, done.counts.reused) == (expected[other], 0, 0)
        heard.next(Saved)


def test_a_change_in_the_open_conversation_leaves_its_live_cache(
    engine: Engine, heard: Listener, folders: dict[str, str], expected: dict[str, str]
) -> None:
    for name in (NO_ADAPTER, PIRATE, POET):
        engine.submit(send("one", folders.get(name, NO_ADAPTER)))
        done = heard.next(Done)
        assert (done.text, done.counts.restored, done.counts.reused) == (expected[name], 0, 0)
    engine.submit(SetScheme("one", "fp16", messages=QUESTION, adapter=folders[PIRATE]))
    heard.next(SchemeChanged)
    engine.submit(Send("one", QUESTION, "fp16", greedy(12), adapter=folders[PIRATE]))
    assert heard.next(Done).text == expected[PIRATE]


def test_an_adapter_that_was_trained_further_is_read_again(
    engine: Engine, heard: Listener, folders: dict[str, str], expected: dict[str, str], tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(folders[PIRATE], own)
    engine.submit(send("one", str(own)))
    assert heard.next(Done).text == expected[PIRATE]
    shutil.rmtree(own)
    shutil.copytree(folders[POET], own)
    engine.submit(reopen("one", str(own)))
    opened = heard.next(Opened)
    assert (opened.restored, "another model" in (opened.reason or "")) == (0, True)
    engine.submit(send("one", str(own)))
    assert heard.next(Done).text == expected[POET]


def test_one_that_cannot_be_used_is_a_sentence_and_the_others_still_work(
    engine: Engine, heard: Listener, folders: dict[str, str], expected: dict[str, str], tmp_path: Path
) -> None:
    gone, peft, foreign = tmp_path / "gone", tmp_path / "peft", tmp_path / "foreign"
    shutil.copytree(folders[PIRATE], peft)
    (peft / "adapters.safetensors").rename(peft / "adapter_model.safetensors")
    write_adapter(foreign, tiny_llama(tmp_path / "wide", hidden_size=128), base="org/wide")
    words = {
        gone: "There is no adapter folder",
        peft: "an adapter of PEFT",
        foreign: "does not fit llama0, it was trained for org/wide",
        tmp_path: "it has no adapter_config.json",
    }
    for turn, (folder, said) in enumerate(words.items()):
        engine.submit(send("good", folders[PIRATE]))
        assert heard.next(Done).text == expected[PIRATE]
        for command in (reopen(f"bad{turn}", str(folder)), send(f"bad{turn}", str(folder))):
            engine.submit(command)
            failed = heard.next(Failed)
            assert said in failed.message and failed.conversation_id == f"bad{turn}"
        engine.submit(send(f"bad{turn}", NO_ADAPTER))
        assert heard.next(Done).text == expected[NO_ADAPTER]


def test_another_model_is_loaded_although_the_open_conversations_adapter_does_not_fit_it(
    engine: Engine, heard: Listener, folders: dict[str, str], tmp_path: Path
) -> None:
    wide = tiny_llama(tmp_path / "wide", hidden_size=128)
    engine.submit(send("one", folders[PIRATE]))
    heard.next(Done)
    engine.submit(LoadModel(str(wide)))
    assert heard.next(ModelReady).info.adapter is None
    assert "The adapter pirate does not fit wide" in heard.next(Failed).message
    engine.submit(send("one", NO_ADAPTER))
    assert heard.next(Done).model == "wide"


def test_titles_and_summaries_are_not_written_with_the_wrong_one(
    engine: Engine, heard: Listener, folders: dict[str, str], expected: dict[str, str]
) -> None:
    engine.submit(send("plain", NO_ADAPTER))
    heard.next(Done)
    engine.submit(Compose("one", "title", QUESTION, 12, adapter=folders[PIRATE]))
    assert heard.next(Composed).text == ""
    engine.submit(Compose("one", "summary", QUESTION, 12, adapter=folders[PIRATE]))
    assert heard.next(Composed).text == expected[PIRATE]
    engine.submit(send("plain", NO_ADAPTER))
    assert heard.next(Done).text == expected[NO_ADAPTER]


def test_a_conversation_without_a_choice_has_the_default_of_the_start(
    heard: Listener, paths: Paths, llama_folder: Path, folders: dict[str, str], expected: dict[str, str]
) -> None:
    engine = Engine(heard, paths=paths, adapter=folders[PIRATE])
    engine.start()
    try:
        engine.submit(LoadModel(str(llama_folder)))
        assert heard.next(ModelReady).info.adapter == PIRATE
        for choice, name in ((None, PIRATE), (folders[POET], POET), (NO_ADAPTER, NO_ADAPTER), (None, PIRATE)):
            engine.submit(send(name, choice))
            assert heard.next(Done).text == expected[name]
    finally:
        engine.shutdown(SECONDS)


def test_a_default_that_cannot_be_used_names_the_setting(
    heard: Listener, paths: Paths, llama_folder: Path, tmp_path: Path
) -> None:
    engine = Engine(heard, paths=paths, adapter=str(tmp_path / "gone"))
    engine.start()
    try:
        engine.submit(LoadModel(str(llama_folder)))
        said = heard.next(ModelFailed).message
        assert "There is no adapter folder" in said and "the setting adapter" in said
    finally:
        engine.shutdown(SECONDS)
