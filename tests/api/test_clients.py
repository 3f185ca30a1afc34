"""Other projects' clients, each from a virtual environment of its own.

The environment variable names a folder with the environments ``openai``, ``litellm``, ``llm`` and
``aider-chat``; those that are missing are made there with pip. Without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.api.client import Client
from tests.api.conftest import Start
from tqchat.api.server import ApiServer
from tqchat.engine.events import Done, Event, TextDelta, TokenCounts
from tqchat.engine.requests.request import Request, Ticket
from tqchat.kv.memory import MemoryReport

CLIENTS_VARIABLE = "TQCHAT_TEST_CLIENTS"
TIMEOUT_S = 500
EDIT = "Here it is:\n\nhello.py\n```\nprint('changed by an agent')\n```\n"

pytestmark = [
    pytest.mark.skipif(CLIENTS_VARIABLE not in os.environ, reason=f"{CLIENTS_VARIABLE} names no folder"),
    pytest.mark.slow,
]

OPENAI = """
import openai, sys
client = openai.OpenAI(base_url=sys.argv[1], api_key="x", max_retries=0)
assert [model.id for model in client.models.list()] == ["tiny"]
asked = dict(model="tiny", messages=[{"role": "user", "content": "Hello!"}], max_tokens=5, temperature=0)
whole = client.chat.completions.create(**asked, extra_body={"cache_scheme": "turbo3"})
assert whole.usage.completion_tokens and whole.x_tqchat["scheme"] == "turbo3"
text, usage = "", None
for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
    text += "".join(choice.delta.content or "" for choice in chunk.choices)
    usage = chunk.usage or usage
assert text == whole.choices[0].message.content and usage.total_tokens
assert client.completions.create(model="tiny", prompt="Once", max_tokens=3).choices[0].text is not None
tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
try:
    assert client.chat.completions.create(**asked, tools=[tool]).choices
except openai.BadRequestError as error:
    assert "tools" in error.message  # the template has no place for them
for wrong, kind in (
    (dict(model="gpt-5"), openai.NotFoundError),
    (dict(messages=[]), openai.BadRequestError),
    (dict(messages=[{"role": "user", "content": "word " * 600}]), openai.BadRequestError),
):
    try:
        client.chat.completions.create(**(asked | wrong))
    except kind as error:
        assert error.code
    else:
        raise AssertionError(wrong)
"""
LITELLM = """
import litellm, sys
asked = dict(
    model="openai/tiny",
    api_base=sys.argv[1],
    api_key="x",
    messages=[{"role": "user", "content": "Hello!"}],
    max_tokens=5,
    temperature=0,
)
whole = litellm.completion(**asked).choices[0].message.content
stream = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(stream=True, **asked))
assert stream.strip() == whole.strip(), (stream, whole)
try:
    litellm.completion(**(asked | dict(model="openai/other")))
except litellm.NotFoundError:
    pass
"""


def programs_of(package: str) -> Path:
    """The folder with a client's programs."""
    folder = Path(os.environ[CLIENTS_VARIABLE]) / package
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=TIMEOUT_S)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", package]
    shown = subprocess.run([*pip[:3], "show", package], capture_output=True, timeout=TIMEOUT_S)
    if shown.returncode and subprocess.run(pip, timeout=TIMEOUT_S).returncode:
        pytest.skip(f"{package} cannot be installed")
    return folder / "bin"


def run(command: list[str], folder: Path, **variables: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("package", "script"), [("openai", OPENAI), ("litellm", LITELLM)])
def test_a_library(api: ApiServer, tmp_path: Path, package: str, script: str) -> None:
    run([str(programs_of(package) / "python"), "-c", script, str(api.address)], tmp_path)


def test_llm(api: ApiServer, client: Client, tmp_path: Path) -> None:
    model = {"model_id": "ours", "model_name": "tiny", "api_base": api.address, "api_key_name": "ours"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    (tmp_path / "keys.json").write_text('{"ours": "x"}')
    command = [
        str(programs_of("llm") / "llm"),
        "-m",
        "ours",
        "-o",
        "max_tokens",
        "5",
        "-o",
        "temperature",
        "0",
    ]
    said = client.chat("Hello!", max_tokens=5).json["choices"][0]["message"]["content"]
    for how in ([], ["--no-stream"]):
        assert run([*command, *how, "Hello!"], tmp_path, LLM_USER_PATH=str(tmp_path)).strip() == said.strip()
    run([*command, "-c", "And then?"], tmp_path, LLM_USER_PATH=str(tmp_path))


def edit(request: Request, receive: Callable[[Event], None]) -> Ticket:
    """Answer as a model that can edit files would."""
    ticket = Ticket(request, receive)
    report = MemoryReport("turbo4", 30, ())
    done = Done(ticket.id, EDIT, "stop", TokenCounts(9, 0, 0, 9, 20), 1.0, 1.0, 0.1, "turbo4", "tiny", report)

    def say() -> None:
        for place in range(0, len(EDIT), 7):
            receive(TextDelta(ticket.id, EDIT[place : place + 7]))
        receive(done)

    threading.Thread(target=say).start()
    return ticket


def test_an_agent_edits_a_file(start: Start, tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text("print('hello')\n")
    run(["git", "init", "--quiet"], tmp_path)
    address = start(edit).address
    options = "--edit-format whole --map-tokens 0 --no-auto-lint --no-check-update --yes-always --no-pretty"
    quiet = "--no-show-model-warnings --no-analytics --no-gitignore --no-show-release-notes"
    said = run(
        [
            str(programs_of("aider-chat") / "aider"),
            "--model",
            "openai/tiny",
            *options.split(),
            *quiet.split(),
            "--message",
            "Change the text that is printed.",
            "hello.py",
        ],
        tmp_path,
        OPENAI_API_BASE=str(address),
        OPENAI_API_KEY="x",
    )
    assert "Applied edit to hello.py" in said
    assert (tmp_path / "hello.py").read_text() == "print('changed by an agent')\n"
