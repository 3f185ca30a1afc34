"""Copying messages, code and conversations to the clipboard; export to a file."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from functools import lru_cache

from tqchat.files import reason_of
from tqchat.paths import expand_user, working_folder
from tqchat.store.database import Message
from tqchat.text import copyable, one_line
from tqchat.ui import figures
from tqchat.ui.actions.registry import Refused
from tqchat.ui.controller.texts.transcript import as_markdown, code_blocks, tables
from tqchat.ui.parts.parts import Parts
from tqchat.ui.screens.dialog import Choose
from tqchat.ui.widgets.chat.blocks import blocks
from tqchat.ui.widgets.chat.layout import plain_text

COPY_ARGUMENTS = ("plain", "code", "table", "chat")
"""Arguments of ``/copy``."""

MAX_NAME_CHARS = 60
"""Length of a file name made from a title."""


def copy_reply(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Copy the last reply, its code or table, or the conversation, depending on the argument."""
    match argument:
        case "":
            if (reply := _last_reply(parts)) is not None:
                _copy(parts, shown(reply), "the reply")
        case "plain":
            if (reply := _last_reply(parts)) is not None:
                _copy(parts, plain(reply), "the reply as plain text")
        case "table":
            if (reply := _last_reply(parts)) is not None:
                return _copy_table(parts, reply)
        case "code":
            copy_last_code(parts, "")
        case "chat":
            copy_chat(parts, "")
        case _:
            raise Refused("/copy takes no argument for the reply as Markdown, or plain, code, table or chat.")
    return None


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


def copy_plain(parts: Parts, argument: str) -> None:
    """Copy the marked message as plain text."""
    if (message := parts.log.marked) is not None:
        _copy(parts, plain(message), "the message as plain text")


def copy_table(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Copy a table of the marked message as TSV; of several, the user chooses one."""
    message = parts.log.marked
    return _copy_table(parts, message) if message is not None else None


def _copy_table(parts: Parts, message: Message) -> Awaitable[None] | None:
    found = _tables(shown(message))
    if not found:
        parts.say("It has no table.")
        return None
    if len(found) == 1:
        _copy(parts, found[0], "the table")
        return None
    options = [
        (str(number), text.partition("\n")[0].replace("\t", " · ")) for number, text in enumerate(found, 1)
    ]
    return _choose(parts, "Copy which table?", options, found, "table")


def has_code(parts: Parts) -> bool:
    """Whether the message under the cursor has a code block."""
    return parts.log.marked is not None and bool(_code_blocks(shown(parts.log.marked)))


def has_table(parts: Parts) -> bool:
    """Whether the message under the cursor has a table."""
    return parts.log.marked is not None and bool(_tables(shown(parts.log.marked)))


@lru_cache(4)
def _code_blocks(markdown: str) -> list[tuple[str, str]]:
    return code_blocks(markdown)


@lru_cache(4)
def _tables(markdown: str) -> list[str]:
    return tables(markdown)


def copy_code(parts: Parts, argument: str) -> Awaitable[None] | None:
    """Copy a code block of the marked message; of several, the user chooses one."""
    message = parts.log.marked
    if message is None:
        return None
    found = _code_blocks(shown(message))
    if len(found) > 1:
        names = [f"{number} {language}".rstrip() for number, (language, _) in enumerate(found, 1)]
        texts = [text for _, text in found]
        options = [(name, text.lstrip().partition("\n")[0]) for name, text in zip(names, texts, strict=True)]
        return _choose(parts, "Copy which block?", options, texts, "block")
    _copy_last_block(parts, message)
    return None


async def _choose(
    parts: Parts, question: str, options: list[tuple[str, str]], texts: list[str], what: str
) -> None:
    """Copy the text that the user chooses by a name and its first line."""
    shown_options = [(name, one_line(text)[:60]) for name, text in options]
    chosen = await parts.ask(Choose(question, shown_options, options[-1][0]))
    if chosen is not None:
        index = [name for name, _ in options].index(chosen)
        _copy(parts, texts[index], f"{what} {index + 1}")


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
    file = expand_user(argument or f"{title or 'conversation'}.md")
    file = working_folder() / file
    try:
        with file.open("x", encoding="utf-8") as written:
            written.write(to_markdown(parts.database, conversation))
    except FileExistsError as error:
        raise Refused(f"{one_line(str(file))} already exists; choose another name.") from error
    except OSError as error:
        raise Refused(f"{one_line(str(file))} cannot be written ({reason_of(error)}).") from error
    parts.say(f"Written to {file}.")


def shown(message: Message) -> str:
    """A message without what is hidden, such as escape sequences, which would act where it is pasted."""
    return copyable(message.content)


def plain(message: Message) -> str:
    """A message as plain text: a user message as typed, a reply without Markdown's signs."""
    text = shown(message)
    return plain_text(blocks(text)) if message.role == "assistant" else text


def _last_reply(parts: Parts) -> Message | None:
    found = next((one for one in reversed(parts.chat.shown.messages) if one.role == "assistant"), None)
    if found is None:
        parts.say("There is no reply to copy yet.")
    return found


def _copy_last_block(parts: Parts, message: Message) -> None:
    found = _code_blocks(shown(message))
    if not found:
        parts.say("It has no code block.")
    else:
        _copy(parts, found[-1][1], "the code")


def _copy(parts: Parts, text: str, what: str) -> None:
    if not text.strip():
        parts.say("There is nothing to copy yet.")
        return
    text = copyable(text)
    parts.copy(text)
    parts.say(f"Copied {what}, {figures.text_size(text)}.")
