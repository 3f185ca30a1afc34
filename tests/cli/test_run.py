from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import fails
from tests.engine.scripted_model import scripted
from tests.models import STARTER_FOLDER
from tqchat.cli import main
from tqchat.commands.turn import open_turn
from tqchat.engine import models
from tqchat.engine.commands import ChatMessage, Sampling
from tqchat.engine.events import Done
from tqchat.engine.session import Session
from tqchat.paths import Paths
from tqchat.store.database import Database, SamplingChoice
from tqchat.ui.input.attachments import MAX_FILE_BYTES, Attachment, split

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


@pytest.mark.parametrize("wrong", [["--temperature", "9"], ["--file", "gone"], ["--model", "./gone"]])
def test_a_failure_is_json_where_that_was_asked_for(capsys: Captured, wrong: list[str]) -> None:
    code = main(["run", "hi", "--json", *wrong])
    printed = capsys.readouterr()
    assert code != 0 and f"tqchat: {json.loads(printed.out)['error']}\n" == printed.err


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


class Piped:
    """Sets standard input to a real pipe that holds a text."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, content: bytes) -> None:
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        self._monkeypatch.setattr(sys, "stdin", os.fdopen(reading, encoding="utf-8"))


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Piped:
    return Piped(monkeypatch)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[ChatMessage]]:
    """The transcripts that the model gets."""
    from tqchat.engine.session import Session

    transcripts: list[list[ChatMessage]] = []
    send = Session.send

    def recording(session: Session, messages: Sequence[ChatMessage], *rest: Any, **named: Any) -> Any:
        transcripts.append(list(messages))
        return send(session, messages, *rest, **named)

    monkeypatch.setattr(Session, "send", recording)
    return transcripts


def test_words_files_and_a_pipe_make_one_question(
    capsys: Captured,
    llama_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    piped: Piped,
    asked: list[list[ChatMessage]],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("Foxes are red.\n")
    (tmp_path / "two words.txt").write_text("```\ncode\n```\n")
    run(capsys, llama_folder, "Why", "is", "the", "sky", "blue?")
    assert asked.pop() == [ChatMessage("user", "Why is the sky blue?")]
    piped(b"diff --git\n+fox\n")
    run(capsys, llama_folder, "What changed?")
    question, context = split(asked.pop()[0].content)
    assert (question, context) == ("What changed?", [Attachment("standard input", "diff --git\n+fox")])
    piped(b"piped")
    run(capsys, llama_folder, "Sum", "up", "@notes.md", "--file", "two words.txt", "--system", "Be brief.")
    system, message = asked.pop()
    assert system == ChatMessage("system", "Be brief.")
    question, files = split(message.content)
    assert question == "Sum up @notes.md"
    assert [(one.name, one.text) for one in files] == [
        ("two words.txt", "```\ncode\n```"),
        ("notes.md", "Foxes are red."),
        ("standard input", "piped"),
    ]
    piped(b"Mail me@example.org about @types/node\n")
    run(capsys, llama_folder, "-", "--file", "notes.md", "--system", "")
    question, files = split(asked.pop()[0].content)
    assert question == "Mail me@example.org about @types/node" and files[0].name == "notes.md"


def test_files_and_pipes_that_cannot_be_attached(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: Piped
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large.txt").write_text("x" * (MAX_FILE_BYTES + 1))
    (tmp_path / "binary").write_bytes(b"\0")
    assert "There is no file gone.md" in fails(capsys, 2, "run", "Sum", "up", "@gone.md")
    assert "There is no file gone" in fails(capsys, 2, "run", "hi", "--file", "gone")
    assert "is a folder" in fails(capsys, 2, "run", "hi", "--file", str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    for name in (str(tmp_path / "pipe"), os.devnull):
        assert "is a pipe or a device" in fails(capsys, 2, "run", "hi", "--file", name)
        assert "is a pipe or a device" in fails(capsys, 2, "run", "hi", f"@{name}")
    assert "at most 1.00 MB" in fails(capsys, 2, "run", "hi", "--file", "large.txt")
    assert "not a text file" in fails(capsys, 2, "run", "hi", "@binary", "--file", "binary")
    for content, said in ((b"caf\xe9", "UTF-8"), (b"a\0b", "UTF-8")):
        piped(content)
        assert said in fails(capsys, 2, "run", "hi")
    with (tmp_path / "large.txt").open(encoding="utf-8") as large:
        monkeypatch.setattr(sys, "stdin", large)
        assert "more than 1.00 MB" in fails(capsys, 2, "run", "hi")


def test_options_out_of_range_are_reported_together(capsys: Captured) -> None:
    assert main(["run", "hi", "--temperature", "9", "--top-p", "7", "--max-tokens", "0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["--temperature", "--top-p", "--max-tokens"]


def test_a_stored_conversation_is_continued(
    capsys: Captured, llama_folder: Path, paths: Paths, asked: list[list[ChatMessage]], piped: Piped
) -> None:
    assert "no conversation to continue" in fails(capsys, 2, "run", "-c", "hi")
    with Database(paths.database) as database:
        talk = database.create("Foxes", None, "fp16", system_prompt="Talk like a fox.")
        database.add_message(talk.id, "user", "hello")
        database.add_message(talk.id, "assistant", "Hello fox.", scheme="turbo4")
        other = database.create("Other", str(llama_folder), "fp16", sampling=SamplingChoice(max_tokens=3))
    printed = run(capsys, llama_folder, "--conversation", talk.id[:6], "and", "now?")
    assert asked.pop() == [
        ChatMessage("system", "Talk like a fox."),
        ChatMessage("user", "hello"),
        ChatMessage("assistant", "Hello fox."),
        ChatMessage("user", "and now?"),
    ]
    piped(b"more")
    figures = json.loads(run(capsys, llama_folder, "--continue", "again", "--json", "--system", "Bark."))
    assert asked.pop()[0] == ChatMessage("system", "Bark.")
    with Database(paths.database) as database:
        messages = database.messages(talk.id)
        assert database.conversation(talk.id).system_prompt == "Talk like a fox."
    assert [one.role for one in messages] == ["user", "assistant"] * 3
    assert messages[3].content.strip() == printed.strip() and messages[3].status == "stopped"
    assert split(messages[4].content) == ("again", [Attachment("standard input", "more")])
    assert messages[5].content == figures["reply"] and messages[5].tokens == figures["tokens"]["generated"]
    figures = json.loads(run(capsys, llama_folder, "--conversation", talk.id, "on", "--json"))
    assert figures["tokens"]["restored"] > 0, "the saved cache is used"
    with Database(paths.database) as database:
        database.set_scheme(talk.id, "affine8")
    figures = json.loads(run(capsys, llama_folder, "--conversation", talk.id, "on", "--json"))
    assert figures["scheme"] == "affine8" and figures["tokens"]["restored"] > 0, "converted"

    # The conversation's own model and sampling; a failure takes the question back.
    assert main(["run", "--conversation", other.id, "hi", "--temperature", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"]["generated"] <= 3
    assert main(["run", "--conversation", other.id, "fox " * 600]) == 1
    assert "512" in capsys.readouterr().err
    with Database(paths.database) as database:
        assert len(database.messages(other.id)) == 2
        assert database.leases.holder_pid(other.id) is None
    assert "tqchat ls" in fails(capsys, 2, "run", "--conversation", "none", "hi")


def test_a_cache_that_cannot_be_saved_is_said_below_the_reply(llama_folder: Path, paths: Paths) -> None:
    with Database(paths.database) as database:
        talk = database.create("t", None, "fp16")
    paths.caches.rmdir()
    paths.caches.write_text("in the way")
    command = [sys.executable, "-m", "tqchat", "run", "hi", "--model", str(llama_folder), "--max-tokens", "3"]
    ended = subprocess.run(
        [*command, "--conversation", talk.id],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    with Database(paths.database) as database:
        reply = database.messages(talk.id)[-1].content
    assert ended.stdout.strip().startswith(f"{reply.strip()}\ntqchat: The cache could not be saved")


def test_an_empty_reply_is_said_to_be_one(capsys: Captured, tmp_path: Path) -> None:
    model = scripted(tmp_path / "model", [([ChatMessage("user", "hi")], "<|im_end|>")])
    assert main(["run", "hi", "--model", str(model)]) == 0
    printed = capsys.readouterr()
    assert not printed.out.strip()
    assert printed.err == "tqchat: The model's reply is empty; ask in other words.\n"


def test_a_signal_stops_the_conversion_of_a_saved_cache_and_takes_the_question_back(
    capsys: Captured, llama_folder: Path, paths: Paths
) -> None:
    with Database(paths.database) as database:
        talk = database.create("Foxes", None, "fp16")
    run(capsys, llama_folder, "--conversation", talk.id, "hello")
    session, stop = Session(models.load(str(llama_folder)), "affine8"), threading.Event()
    stop.set()
    with open_turn(paths, talk.id, None) as turn:
        *_, done = turn.answer(
            session, "on", None, stop, lambda said, *_: session.send(said, Sampling(max_tokens=4), stop)
        )
    assert isinstance(done, Done) and (done.stop_reason, done.text, done.scheme) == ("stopped", "", "fp16")
    with Database(paths.database) as database:
        assert [one.content for one in database.messages(talk.id)][::2] == ["hello"]


def test_auto_says_what_it_chose_only_when_asked_or_changed(
    capsys: Captured, llama_folder: Path, paths: Paths
) -> None:
    common = ["--model", str(llama_folder), "--max-tokens", "1"]
    for arguments, says in (([], False), (["--verbose"], True)):
        assert main(["run", "hi", *arguments, *common]) == 0
        assert ("auto chose" in capsys.readouterr().err) is says
    with Database(paths.database) as database:
        talk = database.create("t", None, "auto")
        database.add_message(talk.id, "user", "hello")
        database.add_message(talk.id, "assistant", "Hello.", scheme="turbo2")
    for says in (True, False):
        assert main(["run", "-c", "hi", *common]) == 0
        assert ("auto chose" in capsys.readouterr().err) is says


def test_a_pipe_into_the_program(llama_folder: Path) -> None:
    """The whole way: a shell, a pipe, a process."""
    line = (
        f"echo context | {sys.executable} -m tqchat run why so --model {llama_folder} --max-tokens 2 --json"
    )
    result = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    alone = len(["why", "so"])
    assert json.loads(result.stdout)["tokens"]["prompt"] > 10 + alone
