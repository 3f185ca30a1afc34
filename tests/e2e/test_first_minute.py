"""The first minute of a new user, with the bundled model and no network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.terminal import Terminal, stored_messages
from tests.engine.talk import greedy, send, user
from tqchat.engine import models
from tqchat.engine.commands import STARTER
from tqchat.engine.session import Session
from tqchat.paths import Paths
from tqchat.store.database import Database
from tqchat.store.vault import Vault

pytestmark = pytest.mark.slow

RESTORED = re.compile(r"Restored ([\d,]+) tokens, nothing re-read\.")


def keep_an_earlier_talk(paths: Paths, llama_folder: Path) -> None:
    """Store a conversation with the former bundled model, and a cache that another model made."""
    with Database(paths.database) as database:
        talk = database.create("An earlier talk", "starter", "turbo4")
        database.add_message(talk.id, "user", "Who is there?")
        database.add_message(talk.id, "assistant", "The former model.", model="starter")
    session = Session(models.load(str(llama_folder)), "turbo4")
    send(session, [user("Who is there?")], greedy(4))
    assert session.save(Vault(paths.caches), talk.id) > 0


def test_the_bundled_model_answers_and_is_restored_under_another_scheme(
    paths: Paths, llama_folder: Path
) -> None:
    with Terminal() as terminal:
        terminal.sees("Ask something", STARTER, "auto")
        terminal.write("What is the capital of France?")
        terminal.sees("Paris", "on disk")
        terminal.write("/scheme turbo3")
        terminal.sees(f"{STARTER} · turbo3", "Ready.")
        terminal.press("ctrl+q")
        assert terminal.ends() == 0
    said = [(message.role, message.content) for message in stored_messages(paths)]
    assert "Paris" in said[1][1]

    keep_an_earlier_talk(paths, llama_folder)
    # The name that settings of earlier versions give the bundled model.
    with Terminal("--model", "starter") as terminal:
        terminal.until(lambda: RESTORED.search(terminal.text()))
        terminal.sees("Paris", f"{STARTER} · turbo3")
        terminal.press("\x1b[1;3A")  # Alt+Up: the newer conversation
        terminal.sees("The former model.", "another model")
        terminal.press("ctrl+q")
        assert terminal.ends() == 0
    kept = [(message.role, message.content) for message in stored_messages(paths)]
    assert set(kept) == {*said, ("user", "Who is there?"), ("assistant", "The former model.")}
