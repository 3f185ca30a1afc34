"""``tqchat ID``: a conversation is opened in the app."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.terminal import Terminal
from tqchat.paths import Paths
from tqchat.settings import State
from tqchat.store.database import Database


@pytest.mark.slow
def test_the_conversation_of_an_id_is_opened(paths: Paths, llama_folder: Path) -> None:
    with Database(paths.database) as database:
        chosen = database.create("Foxes", None, "auto")
        database.add_message(chosen.id, "user", "What is a vixen?")
        other = database.create("Badgers", None, "auto")
        database.add_message(other.id, "user", "What is a sett?")
    State(conversation=other.id).save(paths)
    with Terminal("--model", str(llama_folder), chosen.id[:7]) as terminal:
        terminal.sees("What is a vixen?")
        assert "What is a sett?" not in terminal.text()
        terminal.quit()
    assert State.load(paths).conversation == chosen.id
