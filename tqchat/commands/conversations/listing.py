"""``tqchat ls`` and ``tqchat show``."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

from tqchat import paths
from tqchat.commands.conversations.reading import open_conversation, open_for_reading
from tqchat.store.database import Conversation, Totals
from tqchat.terminal import for_data
from tqchat.text import one_line

SHORT_ID = 8
UNTITLED = "(untitled)"


def list_conversations(*, as_json: bool = False) -> int:
    """Print one line per conversation, most recent first, or all of them as a JSON array."""
    file = paths.locate().database
    # Do not create a database just to list it.
    conversations: list[Conversation] = []
    if file.exists():
        with open_for_reading(file) as database:
            conversations = database.conversations()
            if as_json:
                return _print_json([_to_json(one, database.totals(one.id)) for one in conversations])
    if as_json:
        return _print_json([])
    if not conversations:
        print("No conversations yet; start one with `tqchat`.")
        return 0
    length = _unique_length([conversation.id for conversation in conversations])
    width = max(len(conversation.scheme) for conversation in conversations)
    for conversation in conversations:
        when = datetime.fromtimestamp(conversation.updated_at).strftime("%Y-%m-%d %H:%M")
        title = one_line(conversation.title) or UNTITLED
        print(f"{conversation.id[:length]}  {when}  {one_line(conversation.scheme):<{width}}  {title}")
    return 0


def show(conversation_id: str) -> int:
    """Print the shown branch of a conversation.

    Raises:
        UnknownConversation: if none or several ids match.
    """
    with open_conversation(conversation_id) as (database, conversation):
        messages = database.messages(conversation.id)
    print(one_line(conversation.title) or UNTITLED)
    for message in messages:
        when = datetime.fromtimestamp(message.created_at).strftime("%Y-%m-%d %H:%M")
        note = "" if message.status == "complete" else f", {message.status}"
        name = "you" if message.role == "user" else message.role
        print(f"\n[{name}, {when}{note}]\n{message.content.rstrip()}")
    return 0


def _to_json(conversation: Conversation, totals: Totals) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "title": conversation.title,
        "model": conversation.model,
        "scheme": conversation.scheme,
        "created_at": conversation.created_at,
        "updated_at": conversation.updated_at,
        "messages": totals.messages,
        "tokens": totals.tokens,
    }


def _print_json(values: list[dict[str, Any]]) -> int:
    # ASCII only: safe for terminals and for every encoding.
    print(json.dumps(values, indent=1), file=for_data(sys.stdout))
    return 0


def _unique_length(ids: list[str]) -> int:
    """The shortest length at which id prefixes are unique, at least ``SHORT_ID``."""
    for length in range(SHORT_ID, max(map(len, ids))):
        if len({i[:length] for i in ids}) == len(ids):
            return length
    return max(map(len, ids))
