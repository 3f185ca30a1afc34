"""Copying messages, code and conversations to the clipboard; export to a file."""

from __future__ import annotations

import re
from collections.abc import Awaitable

from tqchat.files import reason_of
from tqchat.paths import expand_user
from tqchat.store.database import Message
from tqchat.text import one_line, stable_width
from tqchat.ui import figures
from tqchat.ui.actions.registry import Refused
from tqchat.ui.controller.texts.transcript import as_markdown, code_blocks
from tqchat.ui.parts.parts import Parts
from tqchat.ui.screens.dialog import Choose

COPY_ARGUMENTS = ("code", "chat")
"""Arguments of ``/copy``."""

MAX_NAME_CHARS = 60
"""Length of a file name made from a title."""


def copy_reply(parts: Parts, argument: str) -> None:
    """Copy the last reply, its code, or the conversation, depending on the argument."""
    match argument:
        case "":
            if (reply := _last_reply(parts)) is not None:
                _copy(parts, shown(reply), "the reply")
        case "code":
            copy_last_code(parts, "")
        case "chat":
            copy_chat(parts, "")
        case _:
            raise Refused("/copy takes no argument for the reply, or code, or chat.")


def copy_last_code(parts: Parts, argument: str) -> None:
    """Copy the last code block of the last reply."""
    if (reply := _last_reply(parts)) is not None:
        _copy_last_block(parts, reply)


def copy_chat(parts: Parts, argument: str) -> None:
    """Copy the conversation as Markdown."""
    name = parts.chat.models.label(parts.chat.shown.adapter) or "assistant"
    _copy(parts, as_markdown(parts.chat.shown.messages, name), "the chat")


def copy_message(parts: Parts, argument: str) -> None:
    """Copy the marked message."""
    if (message := parts.log.marked) is not None:
        _copy(parts, shown(message), "the message")


def copy_code(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Copy a code block of the marked message; of several, the user chooses one."""
    message = parts.log.marked
    if message is None:
        return None
    blocks = code_blocks(shown(message))
    if len(blocks) > 1:
        return _choose_block(parts, blocks)
    _copy_last_block(parts, message)
    return None


async def _choose_block(parts: Parts, blocks: list[tuple[str, str]]) -> None:
    names = [f"{number} {language}".rstrip() for number, (language, _) in enumerate(blocks, 1)]
    first_lines = [one_line(text.lstrip().partition("\n")[0])[:60] for _, text in blocks]
    options = list(zip(names, first_lines, strict=True))
    chosen = await parts.ask(Choose("Copy which block?", options, names[-1]))
    if chosen is not None:
        index = names.index(chosen)
        _copy(parts, blocks[index][1], f"block {index + 1}")


def export(parts: Parts, argument: str) -> None:
    """Write the conversation as Markdown to the file of the argument, else to one named by its title.

    Raises:
        Refused: if there is no conversation, or the file exists.
    """
    from tqchat.store.exchange import to_markdown

    conversation = parts.chat.shown.conversation
    if conversation is None:
        raise Refused("There is no conversation to export yet.", "information")
    title = re.sub(r"[^\w-]+", "-", one_line(conversation.title))[:MAX_NAME_CHARS].strip("-").lower()
    file = expand_user(argument or f"{title or 'conversation'}.md").absolute()
    try:
        with file.open("x", encoding="utf-8") as written:
            written.write(to_markdown(parts.database, conversation))
    except FileExistsError as error:
        raise Refused(f"{one_line(str(file))} already exists; choose another name.") from error
    except OSError as error:
        raise Refused(f"{one_line(str(file))} cannot be written ({reason_of(error)}).") from error
    parts.say(f"Written to {file}.")


def shown(message: Message) -> str:
    """A message as the screen shows it: without escape sequences, whose text would run where it is pasted."""
    return stable_width(message.content)


def _last_reply(parts: Parts) -> Message | None:
    found = next((one for one in reversed(parts.chat.shown.messages) if one.role == "assistant"), None)
    if found is None:
        parts.say("There is no reply to copy yet.")
    return found


def _copy_last_block(parts: Parts, message: Message) -> None:
    blocks = code_blocks(shown(message))
    if not blocks:
        parts.say("It has no code block.")
    else:
        _copy(parts, blocks[-1][1], "the code")


def _copy(parts: Parts, text: str, what: str) -> None:
    if not text.strip():
        parts.say("There is nothing to copy yet.")
        return
    text = stable_width(text)
    parts.copy(text)
    parts.say(f"Copied {what}, {figures.number(len(text))} characters.")
