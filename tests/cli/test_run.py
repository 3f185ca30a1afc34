from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import STARTER_FOLDER
from tqchat.cli import main

Captured = pytest.CaptureFixture[str]
SHAPE = {
    "reply": str,
    "reasoning": str,
    "model": str,
    "scheme": str,
    "tokens": {"prompt": int, "restored": int, "prefilled": int, "generated": int},
    "speed": {"prompt_tok_s": float, "decode_tok_s": float},
    "memory": {
        "bytes": int,
        "allocated_bytes": int,
        "fp16_bytes": int,
        "ratio": float,
        "layers_compressed": int,
        "layers_total": int,
    },
}


def shape_of(value: object) -> object:
    return {key: shape_of(inner) for key, inner in value.items()} if isinstance(value, dict) else type(value)


def run(capsys: Captured, folder: Path, *arguments: str) -> str:
    """Output of `tqchat run` with the tiny model and greedy sampling."""
    common = ["--model", str(folder), "--temperature", "0", "--max-tokens", "12"]
    assert main(["run", *arguments, *common]) == 0
    return capsys.readouterr().out


def test_json_output_has_the_documented_keys(capsys: Captured, llama_folder: Path) -> None:
    printed = run(capsys, llama_folder, "hello", "--json", "--scheme", "turbo0v4")
    assert printed.count("\n") == 1
    answer = json.loads(printed)
    assert shape_of(answer) == SHAPE
    assert answer["scheme"] == "turbo0v4"
    assert answer["tokens"]["restored"] == 0
    assert answer["tokens"]["prompt"] == answer["tokens"]["prefilled"] > 0
    assert 0 < answer["tokens"]["generated"] <= 12
    assert answer["memory"]["layers_total"] == 2
    assert 0 < answer["memory"]["bytes"] <= answer["memory"]["allocated_bytes"]


def test_the_help_describes_every_key_of_the_json_output(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    described = shown[shown.index("--json prints") :]
    for key, inner in SHAPE.items():
        assert f"\n  {key} " in described
        for name in inner if isinstance(inner, dict) else ():
            assert re.search(rf"\b{name}\b", described), name


def test_plain_output_is_the_reply_only(capsys: Captured, llama_folder: Path) -> None:
    plain = run(capsys, llama_folder, "hello")
    reply = json.loads(run(capsys, llama_folder, "hello", "--json"))["reply"]
    assert plain.strip() == reply.strip()
    assert plain.endswith("\n")


def test_the_question_is_read_from_standard_input(
    capsys: Captured, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = run(capsys, llama_folder, "hello fox")
    for arguments in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello fox\n")))
        assert run(capsys, llama_folder, *arguments) == asked


def test_memory_figures_depend_on_the_scheme(capsys: Captured, llama_folder: Path) -> None:
    question = "fox " * 250
    memory = {
        scheme: json.loads(run(capsys, llama_folder, question, "--json", "--scheme", scheme))["memory"]
        for scheme in ("fp16", "affine8", "turbo0v2")
    }
    assert memory["fp16"]["ratio"] == 1
    assert memory["fp16"]["layers_compressed"] == 0
    assert memory["affine8"]["layers_compressed"] == memory["turbo0v2"]["layers_compressed"] == 2
    assert memory["fp16"]["bytes"] > memory["turbo0v2"]["bytes"]
    assert memory["affine8"]["ratio"] > 1.2


def test_a_missing_model_folder(capsys: Captured, tmp_path: Path) -> None:
    assert main(["run", "hello", "--model", str(tmp_path / "gone")]) != 0
    output = capsys.readouterr()
    assert output.out == ""
    assert str(tmp_path / "gone") in output.err
    assert output.err.count("\n") == 1


def test_a_folder_without_a_model(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    assert main(["run", "hello", "--model", str(tmp_path)]) != 0
    output = capsys.readouterr()
    assert output.out == ""
    assert str(tmp_path) in output.err
    assert output.err.count("\n") == 1


def test_an_unreachable_repo(capsys: Captured) -> None:
    assert main(["run", "hello", "--model", "nobody/nothing-here"]) != 0
    output = capsys.readouterr()
    assert "nobody/nothing-here" in output.err
    assert output.err.count("\n") == 1


def test_an_interrupt_exits_with_130_and_no_traceback() -> None:
    # The tiny model finishes before the signal arrives.
    command = [sys.executable, "-m", "tqchat", "run", "Tell me a story about a fox.", "--max-tokens", "400"]
    process = subprocess.Popen(
        [*command, "--model", str(STARTER_FOLDER)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        # Background test runners may ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert errors.decode().endswith("tqchat: Interrupted.\n")
