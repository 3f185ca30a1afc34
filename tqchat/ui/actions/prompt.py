"""Submitting the prompt: a slash command, or a message with its files."""

from __future__ import annotations

from tqchat.ui.actions import context_limit
from tqchat.ui.actions.messages import BUSY
from tqchat.ui.actions.runner import ActionRunner
from tqchat.ui.input import slash
from tqchat.ui.input.attachments import CannotAttach
from tqchat.ui.parts.parts import Parts
from tqchat.ui.widgets.chat.welcome import EXAMPLES


def submit(runner: ActionRunner, text: str, typed: str) -> None:
    """Run a slash command or send a message. ``typed`` is the text without folded pastes."""
    parts = runner.parts
    if parts.chat.tree.edits_reply:
        _save_reply(parts, text)
        return
    command = slash.read(text)
    if command is not None:
        _run(runner, *command)
        return
    try:
        message = parts.attachments.with_files(slash.message(text), typed)
    except CannotAttach as error:
        parts.say(f"{error} Enter again sends it as words.", "warning")
    else:
        context_limit.send(parts, message)


def _save_reply(parts: Parts, text: str) -> None:
    if parts.chat.turns.save_edited_reply(text):
        parts.unsent.leave_edit()
        parts.say(f"Saved as another version; {parts.keys.label('previous_version')} shows the one before.")
    elif not parts.chat.tree.can_change:
        parts.say(BUSY, "warning")


def _run(runner: ActionRunner, word: str, argument: str) -> None:
    """Run a command, with an empty prompt: a command is not unsent text of the conversation."""
    action = runner.actions.by_word(word)
    if action is None:
        runner.parts.say(f"There is no command /{word}; begin with // to send it as text.", "warning")
        return
    prompt = runner.parts.prompt
    prompt.clear_sent()
    if not runner.run(action.name, argument):
        prompt.restore_sent()


def attach(parts: Parts, argument: str) -> None:
    """Send the names of files in the prompt as words, or attach the files again."""
    if not parts.attachments.toggle():
        parts.say("The prompt names no file with @.")


def example(parts: Parts, argument: str) -> None:
    """Put an example into the prompt: that of the argument, else the next one. Other text is kept."""
    written = parts.prompt.text
    if argument:
        chosen = EXAMPLES[int(argument)]
    elif written and written not in EXAMPLES:
        parts.say("Your text is kept; an example is only put into an empty prompt.")
        return
    else:
        following = EXAMPLES.index(written) + 1 if written else 0
        chosen = EXAMPLES[following % len(EXAMPLES)]
    parts.prompt.put(chosen)
    parts.prompt.focus()
