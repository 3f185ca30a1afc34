"""mlx-lm's programs with our caches, started as the README shows."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.models import STARTER_FOLDER
from tests.test_readme import ROOT, blocks


def command(program: str) -> list[str]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    (line,) = [line for line in lines if line.startswith("python -m tqchat.kv") and f" {program} " in line]
    # A model that answers fast.
    return [sys.executable, *shlex.split(line.replace("assets/starter", str(STARTER_FOLDER)))[1:]]


def test_generate_runs_under_a_scheme() -> None:
    run = subprocess.run(
        [*command("generate"), "--max-tokens", "5"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "Generation: " in run.stdout


def ask(port: int, text: str) -> str:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 6, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        reply: dict[str, Any] = json.load(response)
    return str(reply["choices"][0]["message"]["content"])


def test_the_server_answers_several_at_once_under_a_scheme() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*command("server"), "--port", str(port)]
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            # It says so once it listens; a server that fails closes the pipe.
            seen = []
            for line in server.stderr:
                seen.append(line)
                if "Starting httpd" in line:
                    break
            else:
                pytest.fail("".join(seen))
            with ThreadPoolExecutor(4) as pool:
                pool.submit(server.stderr.read)  # a full pipe would stop the server
                questions = ["Hello!", "Foxes?", "Hello!"]
                replies = list(pool.map(lambda text: ask(port, text), questions))
                again = ask(port, questions[0])
                server.send_signal(signal.SIGTERM)
        finally:
            server.kill()
    assert all(replies) and replies[0] == replies[2] == again


@pytest.mark.parametrize(
    "arguments", [[], ["turbo4"], ["nonsense", "generate"], ["turbo4", "nonsense"], ["turbo4", "a.b"]]
)
def test_a_wrong_call_says_what_is_right(arguments: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tqchat.kv", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "usage" in run.stderr or "turbo4" in run.stderr
