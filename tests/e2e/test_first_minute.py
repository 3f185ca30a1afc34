"""The first minute of a new user, with the bundled model and no network."""

from __future__ import annotations

import re

import pytest

from tests.e2e.terminal import Terminal, stored_messages
from tqchat.engine.commands import STARTER
from tqchat.paths import Paths

pytestmark = pytest.mark.slow

RESTORED = re.compile(r"Restored ([\d,]+) tokens, nothing re-read\.")


def test_the_bundled_model_answers_and_is_restored_under_another_scheme(paths: Paths) -> None:
    paths.config_file.write_text("temperature = 0.0\n")
    with Terminal() as terminal:
        terminal.sees("Ask something", STARTER, "auto")
        terminal.write("What is the capital of France?")
        terminal.sees("Paris", "on disk")
        terminal.write("/scheme turbo3")
        terminal.sees("turbo3", "Ready.")
        terminal.press("ctrl+q")
        assert terminal.ends() == 0
    said = [(message.role, message.content) for message in stored_messages(paths)]
    assert "Paris" in said[1][1]

    # The name that settings of earlier versions give the bundled model.
    with Terminal("--model", "starter") as terminal:
        terminal.until(lambda: RESTORED.search(terminal.text()))
        terminal.sees("Paris", STARTER, "turbo3")
        terminal.press("ctrl+q")
        assert terminal.ends() == 0
    assert [(message.role, message.content) for message in stored_messages(paths)] == said
