"""The real commands and the real app in a pseudo-terminal, with hostile strings wherever a string can be.

What the terminal is sent must contain nothing that it would obey, apart from Textual's own sequences.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
import tomli_w

from tests import hostile
from tests.e2e.terminal import Terminal
from tests.models import STARTER_FOLDER
from tests.test_text import is_safe
from tqchat import paths as locations
from tqchat.paths import Paths
from tqchat.store.database import Database

pytestmark = pytest.mark.slow
NAME = hostile.NAME
OPENED = {
    "\x1b[21~": "This conversation",
    "\x0f": "Models",
    "\x13": "Settings",
    "\x1b[20~": "Theme",
    "\x1bOP": "Esc closes",
}
"""Keys of screens, and what they show."""
TEXT = f"Fox {NAME} and\n```sh {NAME}\nls {NAME}\n```\n| {NAME} | [{NAME}](http://x) |"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose own name is hostile."""
    folder = tmp_path / NAME
    monkeypatch.setenv("TQCHAT_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / f"hub {NAME}"))
    return folder


@pytest.fixture
def places(home: Path) -> Paths:
    located = locations.locate()
    located.ensure()
    return located


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder with hostile strings in all its files and names."""
    folder = tmp_path / f"model {NAME}"
    folder.mkdir()
    quantization = {"mode": NAME, "bits": 4}
    config = {"model_type": NAME, "architectures": [NAME], NAME: NAME, "quantization": quantization}
    index = {"metadata": {NAME: NAME}, "weight_map": {NAME: NAME}}
    tokenizer = {"chat_template": NAME, "eos_token": NAME, "tokenizer_class": NAME}
    for name, content in (
        ("config.json", config),
        ("model.safetensors.index.json", index),
        ("tokenizer_config.json", tokenizer),
        ("adapter_config.json", {"model": NAME, "fine_tune_type": NAME}),
        ("generation_config.json", {"eos_token_id": NAME}),
    ):
        (folder / name).write_text(json.dumps(content))
    (folder / NAME).write_text(NAME)
    return folder


@pytest.fixture
def conversation(places: Paths) -> str:
    """A conversation of hostile strings."""
    with Database(places.database) as database:
        chat = database.create(NAME, NAME, "turbo0v4")
        database.set_system_prompt(chat.id, TEXT)
        database.add_message(chat.id, "user", TEXT)
        database.add_message(chat.id, "assistant", TEXT, model=NAME, reasoning=TEXT, scheme=NAME, tokens=3)
        database.set_draft(chat.id, TEXT)
        for folder in (places.caches / chat.id, places.caches / NAME):
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text(json.dumps({"scheme": NAME, NAME: NAME}))
        return chat.id


@pytest.fixture
def settings(places: Paths, model: Path, conversation: str) -> None:
    """Themes, presets, profiles and state of hostile strings."""
    places.themes.mkdir(parents=True, exist_ok=True)
    wrong, right = {"name": NAME, "primary": NAME, NAME: NAME}, {"name": NAME, "primary": "red"}
    for name, theme in ((NAME, wrong), ("b", right)):
        (places.themes / f"{name}.toml").write_text(tomli_w.dumps(theme))
    presets = {"evil": {"temperature": 0.5, "system_prompt": TEXT}, NAME: {NAME: NAME}}
    places.presets.write_text(tomli_w.dumps(presets))
    state = {"conversation": conversation, "settings": {"theme": NAME}}
    places.state_file.write_text(tomli_w.dumps(state))
    profiles = places.cache_dir / "profiles"
    profiles.mkdir(parents=True, exist_ok=True)
    (profiles / f"{NAME}.json").write_text(json.dumps({"fingerprint": NAME, "model": NAME}))
    listed = model.parent / "listed" / f"quantised {NAME}"
    listed.mkdir(parents=True)
    for file in STARTER_FOLDER.iterdir():
        (listed / file.name).symlink_to(file)
    config = json.loads((listed / "config.json").read_text())
    (listed / "config.json").unlink()
    config["quantization"] = {"group_size": 64, "bits": 4, "mode": NAME}
    (listed / "config.json").write_text(json.dumps(config))
    configured = {
        "model": str(model),
        "model_folders": [str(listed.parent)],
        "system_prompt": TEXT,
        "theme": NAME,
    }
    places.config_file.write_text(tomli_w.dumps(configured))


COMMANDS = """
import json, logging, sys, warnings
from tqchat.cli import main
for arguments in json.loads(sys.argv[1]):
    print("$", end=" ")
    try:
        main(arguments)
    except SystemExit:
        pass
name = json.loads(sys.argv[2])
logging.getLogger("some.library").error(name)
warnings.warn(name)
print("Traceback follows")
raise RuntimeError(name)
"""


def test_commands(places: Paths, settings: None, model: Path, conversation: str, tmp_path: Path) -> None:
    with Database(places.database) as database:
        exported = json.dumps({"format": NAME, "version": NAME})
        assert database.conversations()
    (tmp_path / f"{NAME}.json").write_text(exported)
    whole = tmp_path / "whole.json"
    arguments = [
        ["ls"], ["show", conversation], ["show", NAME], ["search", "Fox"], ["search", NAME], ["locate"],
        ["doctor"], ["export", conversation], ["export", conversation, "-o", str(tmp_path / NAME / NAME)],
        ["export", "--all", "--format", "json", "-o", str(whole)], ["import", str(whole)],
        ["import", str(tmp_path / f"{NAME}.json")], ["import", str(tmp_path / f"no {NAME}")],
        ["cache"], ["cache", "prune", "--dry-run"], ["run", NAME], ["run", "q", "--model", NAME],
        ["run", "q", "--scheme", NAME], ["run", "q", "--adapter", str(model)], ["run", "q", f"--{NAME}"],
        [NAME], ["--scheme", NAME], ["serve", "--host", NAME], ["serve", "--port", NAME], ["lab", NAME],
        ["lab", "eval", NAME], ["cache", NAME], ["run", "q", "--temperature", NAME],
    ]  # fmt: skip
    drawn = spawn(["-c", COMMANDS, json.dumps(arguments), json.dumps(NAME)])
    text = drawn.decode()
    assert text.count("$ ") >= len(arguments) and "Traceback follows" in text and "RuntimeError" in text
    drawn = drawn.replace(b"\x1b[1m", b"").replace(b"\x1b[22m", b"")
    assert hostile.unsafe_characters(drawn, own_sequences=False) == []


def spawn(arguments: list[str]) -> bytes:
    """What Python sends to its terminal; the lines' ends are the terminal's."""
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONWARNINGS": "default"}
    child = pexpect.spawn(sys.executable, arguments, env=environment, timeout=120, dimensions=(40, 200))
    drawn: bytes = child.read()
    child.close()
    return drawn.replace(b"\r\n", b"\n")


def copied(drawn: bytes) -> Iterator[str]:
    """The texts that the app put into the terminal's clipboard."""
    for found in re.findall(rb"\x1b\]52;c;([A-Za-z0-9+/=]*)\x07", drawn):
        yield base64.b64decode(found).decode()


def test_the_app(places: Paths, settings: None, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / f"name{NAME}").write_text("x")
    (folder / "named").write_text("x")
    with Terminal(folder=folder) as terminal:
        terminal.sees("F1 help", "Fox", "No model.", "cannot be loaded")
        for keys, seen in (
            (["f5"], "Copied the reply"),
            (["\x1bc"], "Copied the code"),
            (["\x1ba"], "Copied the chat"),
            (["\x1b[1;5A"], "Space unfold"),
            (["y"], "Copied the message"),
            (["\x1b[1;5A"], "Space unfold"),
            (["e"], "Edits an earlier message"),
        ):
            terminal.press(*keys)
            terminal.sees(seen)
        terminal.press("escape")
        terminal.sees_no("Edits an earlier message")
        for open_key, title in OPENED.items():
            terminal.press(open_key)
            terminal.sees(title)
            if title == "Models":
                terminal.press("quantised")
                terminal.sees("quantised xgpjxy", "xgpjxy    4,096")
            terminal.press("escape")
            terminal.sees_no(title)
        # Terminals remove escapes from a paste, but not all remove these.
        terminal.press("\x1b[200~pasted \x9d52;c;RVZJTA==\x9c\x9b8m\u202e\x1b[201~")
        terminal.sees("pasted")
        terminal.press(" @nam")
        terminal.sees("@named")
        terminal.press("\t")
        terminal.press("ctrl+q")
        terminal.ends()
    found = list(copied(terminal.raw))
    assert len(found) >= 4 and all(map(is_safe, found)) and all("ls xgpjxy" in text for text in found)
    drawn = re.sub(rb"\x1b\]52;c;[A-Za-z0-9+/=]*\x07", b"", terminal.raw)
    assert hostile.unsafe_characters(drawn, own_sequences=True) == []
