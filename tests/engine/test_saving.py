"""Saving: interrupted by commands, in segments, with damage on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.talk import TALE, assistant, greedy, send, user
from tests.engine.test_worker import SECONDS, Listener
from tqchat.engine.commands import ChatMessage, LoadModel, Send
from tqchat.engine.events import Done, Saved
from tqchat.engine.models import LoadedModel
from tqchat.engine.session import Session
from tqchat.engine.worker import Engine
from tqchat.paths import Paths
from tqchat.store.vault import Vault, segments
from tqchat.store.vault.manifest import MANIFEST


def test_a_message_interrupts_a_save(
    llama_folder: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Listener()
    engine = Engine(heard, paths=paths)
    asked = (user("Hello"),)
    writes: list[bool] = []
    real = segments.write

    def write(folder: Path, arrays: Any, interrupted: Callable[[], bool], **more: Any) -> Any:
        if not writes:
            engine.submit(Send("a", (*asked, assistant("Hi"), user("More")), "turbo0v4", greedy(4)))
        writes.append(interrupted())
        return real(folder, arrays, interrupted, **more)

    monkeypatch.setattr(segments, "write", write)
    engine.start()
    try:
        engine.submit(LoadModel(str(llama_folder)))
        engine.submit(Send("a", asked, "turbo0v4", greedy(4)))
        saved = heard.next(Saved)
        kinds = [type(event) for event in heard.events if isinstance(event, Done | Saved)]
        assert kinds == [Done, Done, Saved]
        assert saved.tokens == heard.all(Done)[1].report.tokens
        assert writes[0] and not any(writes[1:])
    finally:
        engine.shutdown(SECONDS)


def test_an_interrupted_save_stays_pending(starter: LoadedModel, tmp_path: Path) -> None:
    vault, session = Vault(tmp_path / "vault"), Session(starter, "turbo0v4")
    send(session, [user(TALE)], greedy(3))
    assert session.save(vault, "talk", lambda: True) == 0
    assert session.changed
    assert not (vault.folder / "talk" / MANIFEST).exists()
    assert session.save(vault, "talk") > 0
    assert not session.changed


def test_damage_costs_the_tokens_after_it_and_is_reported(starter: LoadedModel, tmp_path: Path) -> None:
    vault, session = Vault(tmp_path / "vault"), Session(starter, "turbo0v4")
    done = send(session, [user(TALE)], greedy(3))
    session.save(vault, "talk")
    newest = max((vault.folder / "talk").glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1])
    said = [user(TALE), assistant(done.text)]
    again = Session(starter, "turbo0v4")
    restored, reason = again.restore(vault, "talk", said)
    assert 64 <= restored < len(session.tokens)
    assert reason is not None
    assert f"damaged from token {restored + 1:,} on" in reason
    assert "tokens are read again" in reason
    after = send(again, [*said, user("And then?")], greedy(3))
    assert after.counts.restored == restored


def test_a_second_save_reuses_the_segments_of_the_first(starter: LoadedModel, tmp_path: Path) -> None:
    vault, session = Vault(tmp_path / "vault"), Session(starter, "turbo0v4")
    said = [user(TALE)]
    said.append(assistant(send(session, said, greedy(3)).text))
    session.save(vault, "talk")
    first = {piece.file.name for piece in session._cache.pieces}
    assert first
    said.append(user(TALE))
    said.append(assistant(send(session, said, greedy(3)).text))
    session.save(vault, "talk")
    assert first < {piece.file.name for piece in session._cache.pieces}
    # Likewise after a restart.
    again = Session(starter, "turbo0v4")
    assert again.restore(vault, "talk", said)[1] is None
    send(again, [*said, user(TALE)], greedy(3))
    again.save(vault, "talk")
    assert first < {piece.file.name for piece in again._cache.pieces}


def test_returning_to_a_branch_restores_it_from_disk(llama_folder: Path, paths: Paths) -> None:
    heard = Listener()
    engine = Engine(heard, paths=paths)
    question = user("one two three four five six seven " * 9)

    def answered(messages: tuple[ChatMessage, ...]) -> Done:
        engine.submit(Send("a", messages, "turbo0v4", greedy(4)))
        done = heard.next(Done)
        heard.next(Saved)
        return done

    engine.start()
    try:
        engine.submit(LoadModel(str(llama_folder)))
        begin: tuple[ChatMessage, ...] = (question,)
        begin = (*begin, assistant(answered(begin).text))
        one = (*begin, user("red blue green " * 90))
        two = (*begin, user("cat dog cow " * 90))
        read = answered(one).counts
        other = answered(two).counts
        assert 0 < other.reused < read.prompt - 64
        back = answered(one).counts
        assert back.restored + back.reused >= read.prompt - 1 > other.reused + 64
        assert back.restored > other.reused
        # A prompt that continues the live cache restores nothing.
        onwards = answered((*one, assistant("Yes."), user("And then?"))).counts
        assert onwards.restored == 0
    finally:
        engine.shutdown(SECONDS)
