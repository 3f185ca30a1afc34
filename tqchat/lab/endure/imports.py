"""Conversations of other programs, for mutated files: small samples of each format, and their import."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from tqchat.lab.endure import require
from tqchat.lab.endure.content import Format

_CHATGPT = [
    {
        "conversation_id": "c-1",
        "title": "Foxes",
        "create_time": 1700000000.5,
        "update_time": 1700000009.5,
        "current_node": "c",
        "mapping": {
            "root": {"message": None, "parent": None, "children": ["a"]},
            "a": {
                "parent": "root",
                "message": {
                    "author": {"role": "user"},
                    "create_time": 1700000001.5,
                    "content": {
                        "content_type": "multimodal_text",
                        "parts": ["A fox?", {"content_type": "image"}],
                    },
                    "metadata": {"attachments": [{"name": "fox.png"}]},
                },
            },
            "b": {
                "parent": "a",
                "message": {
                    "author": {"role": "assistant"},
                    "content": {"content_type": "thoughts", "thoughts": [{"summary": "s", "content": "Hm."}]},
                    "metadata": {"model_slug": "o3"},
                },
            },
            "c": {
                "parent": "b",
                "message": {
                    "author": {"role": "assistant"},
                    "content": {"content_type": "text", "parts": ["Yes."]},
                },
            },
        },
    }
]
_CLAUDE = [
    {
        "uuid": "c-2",
        "name": "Poem",
        "created_at": "2024-05-01T10:00:00Z",
        "chat_messages": [
            {
                "uuid": "m1",
                "sender": "human",
                "text": "Write",
                "parent_message_uuid": "0",
                "attachments": [{"file_name": "n.txt", "extracted_content": "red"}],
            },
            {
                "uuid": "m2",
                "sender": "assistant",
                "parent_message_uuid": "m1",
                "content": [
                    {"type": "thinking", "thinking": "Hm."},
                    {"type": "tool_use", "name": "artifacts", "input": {"title": "Fox", "content": "fox"}},
                    {"type": "text", "text": "Done."},
                ],
            },
        ],
    }
]
_STEPS = [
    {"type": "contentBlock", "style": {"type": "thinking"}, "content": [{"type": "text", "text": "Hm."}]},
    {"type": "contentBlock", "content": [{"type": "text", "text": "A fox."}], "genInfo": {"identifier": "m"}},
]
_LM_STUDIO = {
    "name": "Vixens",
    "createdAt": 1732012345678,
    "messages": [
        {
            "versions": [{"role": "user", "content": [{"type": "text", "text": "What?"}]}],
            "currentlySelected": 0,
        },
        {"versions": [{"role": "assistant", "steps": _STEPS}, {"role": "assistant"}], "currentlySelected": 0},
    ],
}
_MARKDOWN = "---\ntitle: T\n---\n\n## User\n\nHi\n\n```\n## User\n```\n\n## Assistant\n\n**Hello**\n"


def write(folder: Path) -> dict[Path, Format]:
    """Write a sample of each format, a zip archive among them."""
    from tqchat.store.database import Database

    samples = folder / "samples"
    samples.mkdir()
    files: dict[Path, Format] = {}
    named = {
        "conversations.json": _CHATGPT,
        "conversations-claude.json": _CLAUDE,
        "x.conversation.json": _LM_STUDIO,
    }
    for name, value in named.items():
        (samples / name).write_text(json.dumps(value))
        files[samples / name] = "json"
    (samples / "chat.md").write_text(_MARKDOWN)
    with zipfile.ZipFile(samples / "conversations-zipped.json", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations.json", json.dumps(_CLAUDE))
    Database(folder / "tqchat.db").close()
    return files | {samples / "chat.md": "text", samples / "conversations-zipped.json": "binary"}


def read(folder: Path) -> None:
    """Import the files twice: the second time, nothing may be new."""
    from tqchat.store import exchange
    from tqchat.store.database import Database
    from tqchat.store.imports.json_stream import BadImport
    from tqchat.store.imports.sources import OWN, files_of

    refused: BadImport | None = None
    stored: set[str] = set()
    with Database(folder / "tqchat.db") as database:
        for _ in range(2):
            for file in files_of(folder / "samples", 1.0):
                try:
                    with database.writing() as connection:
                        for one in file.read():
                            if one.parsed is not None and one.source != OWN:
                                outcome = exchange.merge(database, connection, one.parsed).outcome
                                twice = file.name in stored and outcome != "skipped"
                                require(not twice, f"{file.name} was imported twice")
                    stored.add(file.name)
                except BadImport as error:
                    refused = error
        for chat in database.conversations():
            database.messages(chat.id)
    if refused is not None:
        raise refused
