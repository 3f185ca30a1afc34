from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine import tiny as tiny_models
from tests.engine.hub.stand_in_hub import REPO, Hub, serving
from tests.engine.listener import SECONDS, Listener
from tests.engine.talk import assistant, greedy, user
from tests.models import STARTER_FOLDER
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import (
    ChatMessage,
    ForgetConversation,
    ForgetMessages,
    LoadModel,
    OpenConversation,
    Sampling,
    Send,
    SetScheme,
)
from tqchat.engine.events import (
    ConversionProgress,
    Done,
    Event,
    Failed,
    MemoryUpdate,
    ModelFailed,
    ModelProgress,
    ModelReady,
    Opened,
    PrefillProgress,
    Saved,
    SaveFailed,
    SchemeChanged,
    TextDelta,
)
from tqchat.engine.worker import Engine
from tqchat.paths import Paths
from tqchat.store.vault import Vault

HELLO = (user("Hello! My name is Ada."),)
DOG = (user("Tell me a story about a dog."),)


@pytest.fixture
def heard() -> Listener:
    return Listener()


@pytest.fixture
def engine(heard: Listener, paths: Paths) -> Iterator[Engine]:
    engine = Engine(heard, paths=paths)
    engine.start()
    yield engine
    engine.shutdown(SECONDS)


@pytest.fixture
def tiny(llama_folder: Path) -> LoadModel:
    """A tiny random model, where the replies do not matter."""
    return LoadModel(str(llama_folder))


def send(
    conversation: str, messages: tuple[ChatMessage, ...], max_tokens: int = 12, scheme: str = "turbo0v4"
) -> Send:
    return Send(conversation, messages, scheme, greedy(max_tokens))


def test_a_first_conversation(engine: Engine, heard: Listener, paths: Paths) -> None:
    engine.submit(LoadModel(str(STARTER_FOLDER)))
    engine.submit(OpenConversation("first", (), "turbo0v4"))
    engine.submit(send("first", HELLO))
    assert heard.next(ModelProgress).stage == "loading"
    ready = heard.next(ModelReady)
    assert ready.info.name == "starter"
    opened = heard.next(Opened)
    assert (opened.conversation_id, opened.restored, opened.reason) == ("first", 0, None)
    assert heard.next(MemoryUpdate).report.tokens == 0
    done = heard.next(Done)
    saved = heard.next(Saved)
    assert saved.tokens == done.report.tokens
    assert saved.bytes == Vault(paths.caches).size("first")
    assert heard.threads == {engine._thread.ident}
    assert not heard.all(Failed)


def test_the_next_start_prefills_only_new_tokens(heard: Listener, paths: Paths) -> None:
    first = Engine(heard, paths=paths)
    first.start()
    first.submit(LoadModel(str(STARTER_FOLDER)))
    first.submit(send("talk", HELLO))
    said = (*HELLO, assistant(heard.next(Done).text))
    first.shutdown(SECONDS)
    tokens = heard.next(Saved).tokens

    second = Engine(heard, paths=paths)
    second.start()
    second.submit(LoadModel(str(STARTER_FOLDER)))
    second.submit(OpenConversation("talk", said, "turbo0v4"))
    opened = heard.next(Opened)
    assert (opened.restored, opened.reason) == (tokens, None)
    assert heard.next(MemoryUpdate).report.tokens == tokens
    second.submit(send("talk", (*said, user("What is my name?"))))
    done = heard.next(Done)
    assert done.counts.restored == tokens
    assert "Ada" in done.text
    second.shutdown(SECONDS)


def test_a_cache_saved_under_another_scheme_is_converted_instead_of_read_again(
    heard: Listener, paths: Paths
) -> None:
    said: tuple[ChatMessage, ...] = HELLO
    before = ""
    for number, scheme in enumerate(("turbo0v4", "affine8", "turbo4")):
        engine = Engine(heard, paths=paths)
        engine.start()
        engine.submit(LoadModel(str(STARTER_FOLDER)))
        engine.submit(replace(send("talk", said), scheme=scheme))
        done = heard.next(Done)
        if number:
            assert done.counts.restored > 0 and done.counts.prefilled < 40
            changed = next(one for one in reversed(heard.events) if isinstance(one, SchemeChanged))
            assert (changed.previous, changed.scheme) == (before, scheme)
        said, before = (*said, assistant(done.text), user("What is my name?")), scheme
        engine.shutdown(SECONDS)
        heard.next(Saved)
    assert "Ada" in done.text


def test_a_stop_while_the_cache_is_converted_for_a_reply_ends_the_reply_as_stopped(
    engine: Engine, heard: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.submit(LoadModel(str(STARTER_FOLDER)))
    engine.submit(send("talk", HELLO))
    done = heard.next(Done)
    convert = PromptCache.convert

    def stopped_conversion(*arguments: Any) -> None:
        engine.stop()
        convert(*arguments)

    monkeypatch.setattr(PromptCache, "convert", stopped_conversion)
    again = (*HELLO, assistant(done.text), user("What is my name?"))
    engine.submit(replace(send("talk", again), scheme="affine8"))
    done = heard.next(Done)
    assert (done.stop_reason, done.text) == ("stopped", "") and not heard.all(Failed)
    assert heard.all(MemoryUpdate)[-1].report.scheme == "turbo0v4"


def test_stop_ends_earlier_commands_but_no_later_ones(engine: Engine, heard: Listener) -> None:
    engine.submit(LoadModel(str(STARTER_FOLDER)))
    engine.submit(send("a", DOG, 400))
    engine.submit(send("b", DOG, 400))
    heard.next(TextDelta)
    engine.stop()
    engine.submit(send("c", HELLO, 6))
    assert [heard.next(Done).stop_reason for _ in range(3)][:2] == ["stopped", "stopped"]
    last = heard.all(Done)[-1]
    assert last.conversation_id == "c"
    assert last.stop_reason in ("stop", "length")


def test_stop_on_an_idle_engine_does_not_stop_the_next_command(
    tiny: LoadModel, engine: Engine, heard: Listener
) -> None:
    engine.submit(tiny)
    heard.next(ModelReady)
    engine.stop()
    engine.submit(send("a", HELLO, 3))
    assert heard.next(Done).stop_reason != "stopped"


def test_a_queued_message_does_not_wait_for_saving(tiny: LoadModel, engine: Engine, heard: Listener) -> None:
    engine.submit(tiny)
    engine.submit(send("a", HELLO, 3))
    engine.submit(send("a", HELLO, 4))
    heard.next(Done)
    heard.next(Done)
    assert not heard.all(Saved)
    heard.next(Saved)


def test_opening_another_conversation_saves_this_one(
    tiny: LoadModel, engine: Engine, heard: Listener
) -> None:
    engine.submit(tiny)
    engine.submit(send("a", HELLO, 3))
    engine.submit(OpenConversation("b", (), "fp16"))
    engine.submit(OpenConversation("a", HELLO, "turbo0v4"))
    kinds = {Saved, Opened}
    heard.next(Done)
    heard.next(Opened)
    back = heard.next(Opened)
    assert back.conversation_id == "a"
    assert back.restored > 0
    order = [(type(e), e.conversation_id) for e in heard.events if isinstance(e, Saved | Opened)]
    assert order == [(Opened, "a"), (Saved, "a"), (Opened, "b"), (Opened, "a")]
    assert kinds == {kind for kind, _ in order}


def test_a_scheme_change_converts_the_live_cache_and_saves_it(
    engine: Engine, heard: Listener, paths: Paths
) -> None:
    engine.submit(LoadModel(str(STARTER_FOLDER)))
    engine.submit(send("a", DOG, 40))
    done = heard.next(Done)
    heard.next(Saved)
    engine.submit(SetScheme("a", "affine8"))
    change = heard.next(SchemeChanged)
    assert (change.conversation_id, change.previous, change.scheme) == ("a", "turbo0v4", "affine8")
    assert change.tokens == done.report.tokens
    layers = [event for event in heard.events if isinstance(event, ConversionProgress)]
    total = len(done.report.layers)
    assert [(event.done, event.total) for event in layers] == [(n + 1, total) for n in range(total)]
    heard.next(Saved)
    assert Vault(paths.caches).scheme("a") == "affine8"
    engine.submit(SetScheme("a", "turbo7"))
    assert "turbo7" in heard.next(Failed).message
    engine.submit(SetScheme("a", "fp16", reread=True, messages=(*DOG, assistant(done.text))))
    assert heard.next(PrefillProgress).total > 0
    assert heard.next(SchemeChanged).reread


def test_a_message_under_another_scheme_converts_first(
    tiny: LoadModel, engine: Engine, heard: Listener
) -> None:
    engine.submit(tiny)
    engine.submit(send("a", HELLO, 4, "fp16"))
    engine.submit(send("a", HELLO, 4, "turbo0v2"))
    heard.next(Done)
    assert heard.next(SchemeChanged).scheme == "turbo0v2"
    assert heard.next(Done).scheme == "turbo0v2"


def test_a_scheme_change_restores_a_conversation_that_is_not_open(
    tiny: LoadModel, engine: Engine, heard: Listener
) -> None:
    engine.submit(tiny)
    engine.submit(send("a", HELLO, 4, "turbo0v4"))
    heard.next(Saved)
    engine.submit(OpenConversation("b", (), "fp16"))
    engine.submit(SetScheme("a", "fp16", messages=HELLO))
    heard.next(Opened)
    assert heard.next(Opened).restored > 0
    assert heard.next(SchemeChanged).previous == "turbo0v4"


def test_forgetting_deletes_the_cache_on_disk_and_in_memory(
    tiny: LoadModel, engine: Engine, heard: Listener, paths: Paths
) -> None:
    engine.submit(tiny)
    engine.submit(send("a", HELLO, 4))
    heard.next(Saved)
    engine.submit(send("a", HELLO, 5))
    engine.submit(ForgetConversation("a"))
    engine.submit(OpenConversation("a", (), "turbo0v4"))
    heard.next(Done)
    assert heard.next(Opened).restored == 0
    assert not (paths.caches / "a").exists()
    assert len(heard.all(Saved)) == 1


@pytest.mark.parametrize("opens", [True, False])
def test_what_was_read_of_a_withdrawn_message_is_not_read_again(
    engine: Engine, heard: Listener, paths: Paths, opens: bool
) -> None:
    text = "A fox swam over a wide river. " * 120
    engine.submit(LoadModel(str(STARTER_FOLDER)))
    engine.submit(send("a", (user(f"{text} Sum it up."),)))
    while not heard.next(PrefillProgress).done:
        pass
    engine.stop()
    read = heard.next(Done).report.tokens
    assert read
    engine.submit(ForgetConversation("a", withdrawn=True))
    asked = (user(f"{text} Translate it."),)
    if opens:
        engine.submit(OpenConversation("b", asked, "turbo0v4"))
    engine.submit(send("b", asked, 4))
    done = heard.next(Done)
    assert (done.conversation_id, done.counts.reused) == ("b", read)
    saved = heard.next(Saved)
    assert saved.conversation_id == "b" and not (paths.caches / "a").exists()
    engine.submit(OpenConversation("c", (), "turbo0v4"))
    engine.submit(OpenConversation("b", (*asked, assistant(done.text)), "turbo0v4"))
    assert [heard.next(Opened).restored for _ in range(2)] == [0, saved.tokens]


def test_only_a_new_conversation_takes_over_a_withdrawn_one(
    tiny: LoadModel, engine: Engine, heard: Listener
) -> None:
    engine.submit(tiny)
    engine.submit(send("old", HELLO, 4))
    heard.next(Done)
    kept = heard.next(Saved).tokens
    engine.submit(send("a", DOG, 4))
    engine.submit(ForgetConversation("a", withdrawn=True))
    engine.submit(send("old", (*HELLO, assistant("Hi."), user("Who am I?")), 4))
    heard.next(Done)
    assert 0 < heard.next(Done).counts.restored <= kept
    engine.submit(send("b", DOG, 4))
    engine.submit(ForgetConversation("b", withdrawn=True))
    engine.submit(send("d", DOG, 4, scheme="turbo3"))
    heard.next(Done)
    assert heard.next(Done).counts.reused == 0


def test_tokens_of_a_deleted_message_are_in_no_file(
    tiny: LoadModel, engine: Engine, heard: Listener, paths: Paths
) -> None:
    secret = user("The vault opens with seven green apples. " * 6)
    asked = (*HELLO, assistant("Hi."), secret)
    engine.submit(tiny)
    engine.submit(send("a", asked, 2))
    engine.submit(SetScheme("a", "turbo3", messages=asked))
    before = heard.next(Saved)
    model = engine._model
    assert model is not None
    ids = np.array(model.tokenizer.encode(" opens with seven green apples"), dtype=np.uint32).tobytes()

    def files_with_it() -> list[str]:
        files = (paths.caches / "a").iterdir()
        return sorted(file.name.partition("-")[0] for file in files if ids in file.read_bytes())

    assert files_with_it()
    engine.submit(ForgetMessages("a", HELLO))
    after = heard.next(Saved)
    assert 0 < after.tokens < before.tokens
    assert not files_with_it() and not list((paths.caches / "a").glob("earlier-*"))
    engine.submit(OpenConversation("b", (), "turbo0v4"))
    engine.submit(OpenConversation("a", HELLO, "turbo3"))
    heard.next(Opened)
    assert heard.next(Opened).restored == after.tokens


def test_without_a_model_a_message_fails_in_one_sentence(engine: Engine, heard: Listener) -> None:
    engine.submit(send("a", HELLO))
    assert "No model" in heard.next(Failed).message
    engine.submit(LoadModel("/nowhere"))
    assert "/nowhere" in heard.next(ModelFailed).message


def test_a_model_that_fails_to_load_keeps_the_previous_one(
    engine: Engine, heard: Listener, llama_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(llama_folder, broken)
    (broken / "model.safetensors").write_bytes(b"")
    engine.submit(LoadModel(str(STARTER_FOLDER)))
    engine.submit(send("a", HELLO, 4))
    engine.submit(LoadModel(str(broken)))
    engine.submit(send("a", HELLO, 4))
    heard.next(ModelReady)
    heard.next(Done)
    assert "cut short" in heard.next(ModelFailed).message
    again = heard.next(Done)
    assert again.model == "starter"
    assert again.counts.prefilled == 1


def test_another_model_re_reads_the_open_conversation(
    engine: Engine, heard: Listener, llama_folder: Path
) -> None:
    engine.submit(LoadModel(str(STARTER_FOLDER)))
    engine.submit(send("a", HELLO, 4))
    engine.submit(LoadModel(str(llama_folder)))
    heard.next(ModelReady)
    said = (*HELLO, assistant(heard.next(Done).text), user("And?"))
    assert heard.next(ModelReady).info.ref == str(llama_folder)
    opened = heard.next(Opened)
    assert (opened.conversation_id, opened.restored) == ("a", 0)
    assert opened.reason is not None
    assert "another model" in opened.reason
    engine.submit(send("a", said, 4))
    done = heard.next(Done)
    assert done.model == llama_folder.name
    assert done.counts.reused == 0


def test_the_thread_survives_unexpected_errors(
    tiny: LoadModel, engine: Engine, heard: Listener, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tqchat.engine.session import Session

    engine.submit(tiny)
    heard.next(ModelReady)

    def breaks(*_: object, **__: object) -> Iterator[Event]:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_send", breaks)
        patch.setattr(Session, "set_scheme", breaks)
        engine.submit(send("a", HELLO))
        failed = heard.next(Failed)
        assert failed.conversation_id == "a"
        assert "Something unexpected" in failed.message and "ZeroDivisionError" not in failed.message
        engine.submit(SetScheme("a", "fp16"))
        assert "Something unexpected" in heard.next(Failed).message
    engine.submit(send("a", HELLO, 3))
    heard.next(Done)
    log = paths.log_dir / "engine.log"
    assert "Traceback" in log.read_text() and "ZeroDivisionError: a bug" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) & 0o077 == 0


def test_an_error_in_on_event_does_not_end_the_reply(
    tiny: LoadModel, engine: Engine, heard: Listener
) -> None:
    def breaks(event: Event) -> None:
        raise RuntimeError("the screen is gone")

    heard.on_event = breaks
    engine.submit(tiny)
    engine.submit(send("a", HELLO, 4))
    assert heard.next(Done).counts.generated == 4


def test_a_failed_save_is_reported_once(
    tiny: LoadModel, engine: Engine, heard: Listener, paths: Paths
) -> None:
    paths.caches.rmdir()
    paths.caches.write_text("in the way")
    engine.submit(tiny)
    engine.submit(send("a", HELLO, 4))
    heard.next(Done)
    assert "could not be saved" in heard.next(SaveFailed).message
    engine.submit(send("a", HELLO, 4))
    heard.next(Done)
    heard.next(SaveFailed)
    engine.shutdown(SECONDS)
    assert len(heard.all(SaveFailed)) == 2


def test_a_cache_that_has_no_form_on_disk_is_reported_once_for_its_model(
    engine: Engine, heard: Listener, tmp_path: Path
) -> None:
    engine.submit(LoadModel(str(tiny_models.write(tmp_path / "model", tiny_models.OWN_CACHE))))
    for _ in range(2):
        engine.submit(send("a", HELLO, 4))
        heard.next(Done)
    engine.shutdown(SECONDS)
    (failed,) = heard.all(SaveFailed)
    assert failed.message.endswith("cannot be saved: it is read again after a restart.")


def test_a_seed_repeats_a_reply_on_the_engines_thread(
    tiny: LoadModel, engine: Engine, heard: Listener
) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=16, seed=7)
    engine.submit(tiny)
    for conversation in ("a", "b"):
        engine.submit(Send(conversation, DOG, "fp16", sampling))
    assert heard.next(Done).text == heard.next(Done).text


def test_an_unfinished_reply_is_continued(engine: Engine, heard: Listener) -> None:
    engine.submit(LoadModel(str(STARTER_FOLDER)))
    engine.submit(send("a", DOG, 20))
    first = heard.next(Done)
    assert first.stop_reason == "length"
    cut = (*DOG, assistant(first.text))
    engine.submit(Send("a", cut, "turbo0v4", greedy(20), continues=True))
    rest = heard.next(Done)
    assert rest.counts.prefilled == 1
    engine.submit(send("b", DOG, 40))
    assert heard.next(Done).text == first.text + rest.text


# Downloads


@pytest.fixture
def hub(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(llama_folder, tmp_path / "hub-cache", monkeypatch) as hub:
        yield hub


def test_a_download_reports_progress_and_waiting_commands_run_after_it(
    hub: Hub, engine: Engine, heard: Listener
) -> None:
    engine.submit(LoadModel(REPO))
    engine.submit(OpenConversation("a", (), "turbo0v4"))
    engine.submit(send("a", HELLO, 4))
    ready = heard.next(ModelReady)
    assert ready.info.ref == REPO
    assert heard.next(Opened).conversation_id == "a"
    assert heard.next(Done).model == "tiny"
    steps = [step for step in heard.all(ModelProgress) if step.stage == "downloading"]
    assert steps[-1].done_bytes == steps[-1].total_bytes
    assert heard.threads == {engine._thread.ident}


def test_the_current_model_answers_during_a_download(hub: Hub, engine: Engine, heard: Listener) -> None:
    hub.hold.clear()
    engine.submit(LoadModel(str(STARTER_FOLDER)))
    engine.submit(LoadModel(REPO))
    engine.submit(send("a", HELLO, 4))
    assert heard.next(Done).model == "starter"
    hub.hold.set()
    assert heard.next(ModelReady).info.ref == REPO
    assert heard.next(Opened).conversation_id == "a"


def test_a_stalled_download_can_be_cancelled(hub: Hub, engine: Engine, heard: Listener) -> None:
    hub.hold.clear()
    engine.submit(LoadModel(REPO))
    engine.submit(send("a", HELLO, 4))
    assert hub.holding.wait(SECONDS)
    engine.cancel_download()
    assert "cancelled" in heard.next(ModelFailed).message
    assert "No model" in heard.next(Failed).message
    engine.submit(LoadModel(str(STARTER_FOLDER)))
    assert heard.next(ModelReady).info.name == "starter"
    hub.hold.set()
    engine.submit(LoadModel(REPO))
    assert heard.next(ModelReady).info.ref == REPO


def test_loading_another_model_cancels_a_download(hub: Hub, engine: Engine, heard: Listener) -> None:
    hub.hold.clear()
    engine.submit(LoadModel(REPO))
    engine.submit(send("a", HELLO, 4))
    engine.submit(LoadModel(str(STARTER_FOLDER)))
    failed = heard.next(ModelFailed)
    assert (failed.ref, "another model" in failed.message) == (REPO, True)
    heard.next(ModelReady)
    assert heard.next(Done).model == "starter"


def test_a_download_does_not_delay_shutdown(hub: Hub, heard: Listener, paths: Paths) -> None:
    hub.hold.clear()
    engine = Engine(heard, paths=paths)
    engine.start()
    engine.submit(LoadModel(REPO))
    assert hub.holding.wait(SECONDS)
    engine.shutdown(SECONDS)
    # The mirror still holds the download back, so nothing waited for its end.
    assert engine._finished.is_set() and not hub.hold.is_set()


def test_an_unknown_model_keeps_the_current_one(
    tiny: LoadModel, hub: Hub, engine: Engine, heard: Listener
) -> None:
    hub.missing = True
    engine.submit(tiny)
    engine.submit(LoadModel(REPO))
    assert "There is no model" in heard.next(ModelFailed).message
    engine.submit(send("a", HELLO, 4))
    heard.next(Done)


# Shutdown


def test_shutdown_during_a_reply_saves_the_cache(tiny: LoadModel, heard: Listener, paths: Paths) -> None:
    engine = Engine(heard, paths=paths)
    engine.start()
    engine.submit(tiny)
    engine.submit(send("a", DOG, 400))
    heard.next(TextDelta)
    engine.submit(send("b", DOG, 400))
    engine.shutdown(SECONDS)
    (done,) = heard.all(Done)
    assert done.stop_reason == "stopped"
    assert heard.next(Saved).tokens == done.report.tokens
    assert Vault(paths.caches).size("b") == 0
    engine.shutdown(SECONDS)


def test_an_engine_that_never_started_can_be_shut_down(
    tiny: LoadModel, heard: Listener, paths: Paths
) -> None:
    Engine(heard, paths=paths).shutdown(1)


SHUTDOWN_SCRIPT = """
import sys, threading
from tqchat.engine.commands import ChatMessage, LoadModel, Sampling, Send
from tqchat.engine.events import Done, TextDelta
from tqchat.engine.worker import Engine
from tqchat.paths import locate
there = threading.Event()
engine = Engine(lambda e: there.set() if isinstance(e, eval(sys.argv[1])) else None, paths=locate())
engine.start()
engine.submit(LoadModel(sys.argv[2]))
engine.submit(Send("a", (ChatMessage("user", "Tell me a story."),), "turbo0v4", Sampling(max_tokens=60)))
assert there.wait(60)
engine.shutdown(30)
"""


@pytest.mark.parametrize("when", ["Done", "TextDelta"])
def test_the_process_ends_without_a_crash(when: str, home: Path, llama_folder: Path) -> None:
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", SHUTDOWN_SCRIPT, when, str(llama_folder)],
            capture_output=True,
            text=True,
            env=os.environ,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
