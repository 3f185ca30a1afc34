"""Data exports of other programs as they look: ChatGPT, Claude, LM Studio. Written for the tests."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

ROOT = "00000000-0000-4000-8000-000000000000"
"""Parent of Claude's first messages."""


def chatgpt_node(
    key: str,
    parent: str | None,
    role: str | None = None,
    *parts: object,
    time: float | None = None,
    content: dict[str, Any] | None = None,
    recipient: str = "all",
    **metadata: object,
) -> dict[str, Any]:
    """A node of a conversation's ``mapping``; ``content`` replaces a text of ``parts``."""
    message = None
    if role is not None:
        message = {
            "id": key,
            "author": {"role": role, "name": None, "metadata": {}},
            "create_time": time,
            "update_time": None,
            "content": content or {"content_type": "text", "parts": list(parts)},
            "status": "finished_successfully",
            "end_turn": True,
            "weight": 1.0,
            "metadata": {"request_id": "r-1", "citations": [{"deep": [{"er": [1, 2]}]}], **metadata},
            "recipient": recipient,
            "channel": None,
        }
    return {"id": key, "message": message, "parent": parent, "children": []}


def chatgpt_conversation(
    *nodes: dict[str, Any], id: str, title: str, current: str, created: float = 1_700_000_000.5
) -> dict[str, Any]:
    mapping = {node["id"]: node for node in nodes}
    for node in nodes:
        if isinstance(node["parent"], str) and node["parent"] in mapping:
            mapping[node["parent"]].setdefault("children", []).append(node["id"])
    return {
        "title": title,
        "create_time": created,
        "update_time": created + 1_000,
        "mapping": mapping,
        "moderation_results": [],
        "current_node": current,
        "plugin_ids": None,
        "conversation_id": id,
        "gizmo_id": None,
        "is_archived": False,
        "safe_urls": [],
        "default_model_slug": "gpt-4o",
        "id": id,
    }


def chatgpt() -> list[dict[str, Any]]:
    """Three conversations: one with a tool, reasoning and versions; one with an image; an empty one."""
    image = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://file-1", "width": 10}
    foxes = chatgpt_conversation(
        chatgpt_node("root", None),
        chatgpt_node("sys", "root", "system", "", is_visually_hidden_from_conversation=True),
        chatgpt_node(
            "instructions",
            "sys",
            "user",
            content={"content_type": "user_editable_context", "user_profile": "I like foxes"},
        ),
        chatgpt_node("u1", "instructions", "user", "How many foxes?", time=1_700_000_001.0),
        chatgpt_node(
            "think",
            "u1",
            "assistant",
            time=1_700_000_002.0,
            content={
                "content_type": "thoughts",
                "thoughts": [{"summary": "Plan", "content": "I count them."}],
            },
            model_slug="o3",
        ),
        chatgpt_node(
            "code",
            "think",
            "assistant",
            time=1_700_000_003.0,
            content={"content_type": "code", "language": "python", "text": "print(3)"},
            recipient="python",
        ),
        chatgpt_node(
            "out",
            "code",
            "tool",
            time=1_700_000_004.0,
            content={"content_type": "execution_output", "text": "3"},
        ),
        chatgpt_node(
            "a1", "out", "assistant", "There are **three**\ue200cite\ue202turn0\ue201.", time=1_700_000_005.0
        ),
        chatgpt_node("a2", "u1", "assistant", "Four.", time=1_700_000_009.0, model_slug="gpt-4o"),
        chatgpt_node("u2", "a1", "user", "Sure?", time=1_700_000_006.0),
        chatgpt_node("a3", "u2", "assistant", "Yes.", time=1_700_000_007.0),
        chatgpt_node("u3", "a1", "user", "Really?", time=1_700_000_010.0),
        id="11111111-aaaa",
        title="Counting foxes",
        current="a3",
    )
    picture = chatgpt_conversation(
        chatgpt_node("r", None),
        chatgpt_node(
            "p1",
            "r",
            "user",
            content={"content_type": "multimodal_text", "parts": [image, "What is this?"]},
            attachments=[{"id": "file-1", "name": "den.png", "size": 4}],
        ),
        chatgpt_node("p2", "p1", "assistant", "A den. 狐\ud83e\udd8a"),
        id="22222222-bbbb",
        title="",
        current="p2",
        created=1_600_000_000.0,
    )
    empty = chatgpt_conversation(chatgpt_node("r", None), id="33333333-cccc", title="New chat", current="r")
    return [foxes, picture, empty]


def claude_message(key: str, sender: str, text: str, **more: Any) -> dict[str, Any]:
    block = {"start_timestamp": None, "stop_timestamp": None, "type": "text", "text": text, "citations": []}
    return {
        "uuid": key,
        "text": text,
        "content": [block] if text else [],
        "sender": sender,
        "created_at": "2024-05-01T10:00:00.123456Z",
        "updated_at": "2024-05-01T10:00:00.123456Z",
        "attachments": [],
        "files": [],
    } | more


def claude() -> list[dict[str, Any]]:
    """Two conversations: one with versions, reasoning, an artifact and an attachment; an older linear one."""
    thought = [
        {"type": "thinking", "thinking": "It wants a poem.", "summaries": [{"summary": "s"}]},
        {"type": "text", "text": "Here it is:"},
        {
            "type": "tool_use",
            "name": "artifacts",
            "input": {"title": "Fox", "language": "python", "content": "print('fox')", "version": {"a": 1}},
        },
        {"type": "tool_result", "name": "artifacts", "content": [{"type": "text", "text": "OK"}]},
    ]
    attached = [
        {"file_name": "notes.txt", "file_type": "txt", "file_size": 9, "extracted_content": "Red\nfox\n"}
    ]
    tree = {
        "uuid": "claude-1",
        "name": "A poem",
        "summary": "**Overview** of it",
        "created_at": "2024-05-01T09:59:00.000000Z",
        "updated_at": "2024-05-02T09:59:00.000000Z",
        "account": {"uuid": "me"},
        "chat_messages": [
            claude_message(
                "c1",
                "human",
                "Write it.",
                parent_message_uuid=ROOT,
                attachments=attached,
                files=[{"file_name": "p.png"}],
            ),
            claude_message("c2", "assistant", "", content=thought, parent_message_uuid="c1"),
            claude_message("c3", "human", "Longer", parent_message_uuid="c2"),
            claude_message("c4", "human", "Shorter", parent_message_uuid="c2"),
            claude_message("c5", "assistant", "Fox.", parent_message_uuid="c4"),
        ],
    }
    linear = {
        "uuid": "claude-2",
        "name": "Old",
        "created_at": "2023-01-01T00:00:00+00:00",
        "updated_at": "2023-01-01T00:00:00+00:00",
        "chat_messages": [
            {"uuid": "l1", "text": "Hi", "sender": "human", "created_at": "2023-01-01T00:00:00+00:00"},
            {"uuid": "l2", "text": "Hello!", "sender": "assistant"},
        ],
    }
    empty = {"uuid": "claude-3", "name": "", "created_at": "x", "chat_messages": []}
    return [tree, linear, empty]


def lm_studio() -> dict[str, Any]:
    """A conversation with two versions of an answer and one of them with reasoning."""

    def steps(*texts: tuple[str, str | None]) -> list[dict[str, Any]]:
        return [
            {
                "type": "contentBlock",
                "stepIdentifier": "1",
                "content": [{"type": "text", "text": text, "fromDraftModel": False}],
                "style": {"type": style, "ended": True} if style else None,
                "genInfo": {
                    "indexedModelIdentifier": "qwen/qwen3-4b",
                    "identifier": "qwen3-4b",
                    "loadModelConfig": {"fields": [{"key": "k", "value": {"x": [1]}}]},
                    "stats": {"stopReason": "eosFound", "tokensPerSecond": 30.5},
                },
            }
            for text, style in texts
        ] + [{"type": "debugInfoBlock", "debugInfo": "Conversation naming technique: 'prompt'"}]

    def version(*texts: tuple[str, str | None]) -> dict[str, Any]:
        sender = {"senderName": "qwen3-4b"}
        return {"type": "multiStep", "role": "assistant", "senderInfo": sender, "steps": steps(*texts)}

    def user(text: str, *more: dict[str, Any]) -> dict[str, Any]:
        content = [{"type": "text", "text": text}, *more]
        one = {"type": "singleStep", "role": "user", "content": content, "preprocessed": {"type": "x"}}
        return {"versions": [one], "currentlySelected": 0}

    file = {"type": "file", "fileIdentifier": "17 - notes.pdf", "fileType": "text/other", "sizeBytes": 5}
    return {
        "name": "Vixens",
        "pinned": False,
        "createdAt": 1_732_012_345_678,
        "preset": "",
        "tokenCount": 90,
        "systemPrompt": "",
        "messages": [
            user("What is a vixen?", file),
            {
                "versions": [
                    version(("Let me think.", "thinking"), ("A female fox.", None)),
                    version(("<think>Hm.</think>A she-fox.", None)),
                ],
                "currentlySelected": 0,
            },
            user("And a dog fox?"),
            {"versions": [version(("A male.", None))], "currentlySelected": 0},
        ],
        "usePerChatPredictionConfig": True,
        "perChatPredictionConfig": {"fields": [{"key": "llm.prediction.systemPrompt", "value": "Be brief."}]},
        "clientInput": "",
        "plugins": [],
        "notes": [],
    }


MARKDOWN = """\
---
title: "Red foxes"
created: 2024-06-01T08:00:00
---

### User

What eats a fox?

```md
### User
no message
```

### ChatGPT

**Bold:** an eagle.

### Summary

Not a speaker.

### User

Thanks
"""


def zipped(*files: tuple[str, bytes]) -> bytes:
    """A zip archive of these files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return content.getvalue()


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()
