"""``tqchat api`` as a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.client import Client
from tqchat import cli
from tqchat.api.usual import TOKEN_VARIABLE

PHRASE = "a phrase that nobody else writes down"


def texts_below(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_it_serves_until_a_signal_and_writes_no_text(llama_folder: Path, home: Path) -> None:
    command = [sys.executable, "-m", "tqchat", "api", "--model", str(llama_folder), "--port", "0"]
    environment = os.environ | {TOKEN_VARIABLE: "sesame"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as served:
        assert served.stdout is not None and served.stderr is not None
        try:
            line = served.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
            assert address is not None, served.stderr.read()
            client = Client(int(address[1]), {"Authorization": "Bearer sesame"})
            assert client.chat(PHRASE * 4).status == 200
            assert client.chat(PHRASE, temperature=PHRASE).status == 400
            assert client.chat(PHRASE, model=PHRASE).status == 404
            assert client.ask("GET", "/health", headers={"Authorization": "Bearer x"}).status == 401
        finally:
            served.send_signal(signal.SIGTERM)
        assert served.wait(60) == 0
        assert served.stderr.read() == ""
    assert list((home / "cache" / "requests").rglob("*.safetensors"))
    assert PHRASE.encode() not in texts_below(home)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "192.0.2.1"], "set a token"),
        (["--host", "0.0.0.0"], "the one address"),
        (["--port", "65536"], "from 1 to 65535"),
        (["--token", "two words"], "visible ASCII"),
        (["--scheme", "turbo99"], "no cache scheme"),
    ],
)
def test_options_that_are_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["api", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("days", ["nan", "0", "-1", "inf", "soon"])
def test_days_that_are_refused_are_explained(days: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["api", f"--keep-days={days}"])
    assert f"{days!r} is not a number of days above 0" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_its_packages_it_says_how_to_get_them(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert cli.main(["api"]) == 2
    assert "pip install 'tqchat[api]'" in capsys.readouterr().err
