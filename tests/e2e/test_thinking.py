"""End to end in a pseudo-terminal with a model that reasons between special tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.terminal import Terminal
from tests.engine.scripted_model import CHATML, scripted
from tests.engine.talk import user
from tqchat.paths import Paths
from tqchat.store.database import Database, Message

pytestmark = pytest.mark.slow

THINK = ("<think>", "</think>")
SWITCH = CHATML + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
QUESTION = "Which letter is the tenth?"
STEPS = "\n".join(f"Step {number}: weigh it." for number in range(1, 25))


@pytest.fixture
def model(tmp_path: Path) -> str:
    reply = f"<think>\n{STEPS}\n</think>\n\nIt is **J**.<|im_end|>"
    return str(scripted(tmp_path / "reasoner", [([user(QUESTION)], reply)], template=SWITCH, special=THINK))


def replies(paths: Paths) -> list[Message]:
    with Database(paths.database) as database:
        return [
            message
            for conversation in database.conversations()
            for message in database.messages(conversation.id)
            if message.role == "assistant" and message.status != "unfinished"
        ]


def test_reasoning_is_folded_unfolded_switched_off_and_kept_when_cut(model: str, paths: Paths) -> None:
    paths.config_file.write_text("temperature = 0.0\nmax_tokens = 300\n")
    with Terminal("--model", model) as terminal:
        terminal.sees("reasoner", "thinking: default")
        terminal.write(QUESTION)
        terminal.sees("▸ Thought for", "It is J.", "first ")
        assert "Step 1:" not in terminal.text() and "think>" not in terminal.text()
        terminal.press("\x1b[1;5A", " ")  # Ctrl+Up, Space
        terminal.sees("▾ Thought for", "Step 24: weigh it.")
        terminal.press(" ")
        terminal.sees("▸ Thought for")
        terminal.sees_no("Step 24: weigh it.")
        terminal.press("escape")
        terminal.sees("F1 help")
        (whole,) = replies(paths)
        assert (whole.content.strip(), whole.reasoning) == ("It is **J**.", STEPS)

        terminal.press("ctrl+n")
        terminal.sees("Ask something")
        terminal.write("/think off")
        terminal.sees("Thinking: off, from the next reply on.", "thinking: off")
        terminal.press("ctrl+l")
        terminal.sees("Reasoning in this conversation")
        terminal.press("escape")
        terminal.sees_no("Reasoning in this conversation")
        terminal.write("/think default")
        terminal.sees("thinking: default")
        terminal.write("/set max_tokens=40")
        terminal.sees("Set for this conversation: max_tokens 40.")
        terminal.write(QUESTION)
        terminal.sees("▸ Thinking cut off after", "cut at the length")
        terminal.press("f5")
        terminal.sees("There is nothing to copy yet.")
        cut = next(one for one in replies(paths) if one.id != whole.id)
        assert cut.content == "" and cut.reasoning and STEPS.startswith(cut.reasoning)
        terminal.press("ctrl+q")
        assert terminal.ends() == 0


def test_switched_off_by_command_the_model_does_not_reason(model: str, paths: Paths) -> None:
    paths.config_file.write_text("temperature = 0.0\nmax_tokens = 4\n")
    with Terminal("--model", model) as terminal:
        terminal.sees("thinking: default")
        terminal.write("/think off")
        terminal.sees("thinking: off")
        terminal.write(QUESTION)
        terminal.until(lambda: replies(paths))
        (reply,) = replies(paths)
        assert not reply.reasoning, "the prompt has closed the reasoning"
        assert reply.content
        terminal.press("ctrl+q")
        assert terminal.ends() == 0
