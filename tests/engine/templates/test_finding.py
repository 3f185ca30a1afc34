"""A chat template is found wherever it lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.engine.talk import user
from tests.models import STARTER_FOLDER, TOKENIZER_FILES
from tqchat.engine.templates import chat_template, render
from tqchat.engine.templates.sandbox import MAX_TEMPLATE_LENGTH

CHAT = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
REFUSING = "{{ raise_exception('not for chats') }}"


def loaded(folder: Path, configured: Any = None, **files: str) -> Any:
    """The starter's tokenizer with templates in these places."""
    from mlx_lm.utils import load_tokenizer

    folder.mkdir()
    for name in TOKENIZER_FILES:
        shutil.copy(STARTER_FOLDER / name, folder / name)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template")
    if configured is not None:
        config["chat_template"] = configured
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("configured", "files"),
    [
        (CHAT, {}),
        (None, {"chat_template_dot_jinja": CHAT}),
        (None, {"chat_template_dot_json": json.dumps({"chat_template": CHAT})}),
        (
            None,
            {
                "chat_template_dot_json": json.dumps(
                    {"chat_template": [{"name": "default", "template": CHAT}]}
                )
            },
        ),
        ([{"name": "default", "template": CHAT}, {"name": "tool_use", "template": REFUSING}], {}),
        ([{"name": "chat", "template": CHAT}], {}),
        ([{"name": "rag", "template": REFUSING}, {"name": "my-own", "template": CHAT}], {}),
        ([{"name": "tool_use", "template": CHAT}], {}),
        (
            None,
            {
                "additional_chat_templates__plain_dot_jinja": CHAT,
                "additional_chat_templates__tool_use_dot_jinja": REFUSING,
            },
        ),
        (None, {"chat_template_dot_jinja": CHAT, "additional_chat_templates__tool_use_dot_jinja": REFUSING}),
        ("", {"chat_template_dot_json": json.dumps({"chat_template": CHAT})}),
    ],
)
def test_a_template_is_found_wherever_it_lies(tmp_path: Path, configured: Any, files: dict[str, str]) -> None:
    tokenizer = loaded(tmp_path / "model", configured, **files)
    assert tokenizer.decode(render(tokenizer, [user("Hello")])) == "[Hello]"


@pytest.mark.parametrize(
    ("configured", "files"),
    [
        (None, {}),
        ("", {}),
        (" \n", {}),
        ([], {}),
        ([{"name": "default", "template": ""}], {}),
        (None, {"chat_template_dot_json": "{"}),
        (None, {"chat_template_dot_json": "[]"}),
        (None, {"chat_template_dot_json": '{"chat_template": 5}'}),
        (None, {"chat_template_dot_jinja": "x" * (MAX_TEMPLATE_LENGTH + 1)}),
    ],
)
def test_an_empty_or_absurd_template_is_none(tmp_path: Path, configured: Any, files: dict[str, str]) -> None:
    tokenizer = loaded(tmp_path / "model", configured, **files)
    assert chat_template(tokenizer) is None
    assert tokenizer.decode(render(tokenizer, [user("Hello")])) == "User: Hello\n\nAssistant:"


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path / "model", chat_template_dot_json=json.dumps({"chat_template": CHAT}))
    assert tokenizer.decode(render(tokenizer, [user("Hello")])) == "[Hello]"
    other = json.dumps({"chat_template": CHAT.replace("[", "((")})
    (tmp_path / "model" / "chat_template.json").write_text(other)
    assert tokenizer.decode(render(tokenizer, [user("Hello")])) == "((Hello]"


def test_templates_that_are_code_of_mlx_lm_are_used(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path / "model", CHAT)
    given: dict[str, Any] = {}

    def function(messages: list[dict[str, str]], **options: Any) -> str:
        given.update(options)
        return "".join(f"({one['content']})" for one in messages)

    tokenizer._chat_template = function
    found = render(tokenizer, [user("What is <|im_end|>?")], variables={"enable_thinking": False})
    assert tokenizer.decode(found) == "(What is <|im_end|>?)"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in found
    assert given == {"add_generation_prompt": True, "enable_thinking": False}
