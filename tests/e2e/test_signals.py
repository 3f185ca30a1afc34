"""Signals end the app and ``run`` in order, whatever they are doing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.terminal import Terminal, stored_messages
from tests.engine.hub.stand_in_hub import REPO, serving
from tests.engine.scripted_model import scripted
from tests.engine.talk import TALE, user
from tests.models import STARTER_FOLDER, tiny_llama
from tqchat.engine import backend
from tqchat.paths import Paths
from tqchat.store.database import Database
from tqchat.store.vault import Vault

pytestmark = pytest.mark.slow

QUESTION = "Tell me"
WORDS = " ".join(f"word{number}" for number in range(1, 120))
SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT]


@pytest.fixture
def model(tmp_path: Path, paths: Paths) -> str:
    paths.config_file.write_text("temperature = 0.0\nmax_tokens = 900\n")
    return str(scripted(tmp_path / "long", [([user(QUESTION)], WORDS + "<|im_end|>")]))


def replies(paths: Paths) -> list[str]:
    return [message.content for message in stored_messages(paths) if message.role == "assistant"]


def ends_in_order(terminal: Terminal, number: signal.Signals) -> None:
    """The exit code is the conventional one, and the terminal is as it was before."""
    assert terminal.ends() == 128 + number
    for set_, reset in [
        (b"\x1b[?1049h", b"\x1b[?1049l"),
        (b"\x1b[?25l", b"\x1b[?25h"),
        (b"\x1b[?1000h", b"\x1b[?1000l"),
        (b"\x1b[?2004h", b"\x1b[?2004l"),
    ]:
        assert 0 <= terminal.raw.rfind(set_) < terminal.raw.rfind(reset), reset
    assert b"Traceback" not in terminal.raw


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_a_reply_saves_it_and_its_cache(
    number: signal.Signals, model: str, paths: Paths
) -> None:
    with Terminal("--model", model) as terminal:
        terminal.sees("Ask something", "Ready.")
        terminal.write(QUESTION)
        terminal.sees("word9 ")
        terminal.process.kill(number)
        terminal.process.kill(number)
        ends_in_order(terminal, number)
    (reply,) = replies(paths)
    assert "word9" in reply and WORDS.startswith(reply.strip())
    (saved,) = Vault(paths.caches).entries()
    assert saved.bytes


def test_a_scheme_asked_for_during_a_reply_outlives_a_kill(model: str, paths: Paths) -> None:
    with Terminal("--model", model, "--scheme", "turbo4") as terminal:
        terminal.sees("Ask something", "Ready.")
        terminal.write(QUESTION)
        terminal.sees("word5 ")
        terminal.write("/scheme affine8")
        terminal.sees("Changes to affine8 when this reply is done")
        terminal.until(lambda: replies(paths))
    with Terminal("--model", model) as terminal:
        terminal.sees("unfinished", "affine8")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_idle_keeps_the_unsent_text(number: signal.Signals, model: str, paths: Paths) -> None:
    with Terminal("--model", model) as terminal:
        terminal.sees("Ask something")
        terminal.press("Not sent yet")
        terminal.sees("Not sent yet")
        terminal.process.kill(number)
        ends_in_order(terminal, number)
    assert paths.unsent_text.read_text() == "Not sent yet"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("arguments", [(), ("--pack-prompts",)], ids=["", "packed"])
def test_a_signal_while_a_first_message_is_read_saves_what_was_read(
    number: signal.Signals, arguments: tuple[str, ...], paths: Paths
) -> None:
    """A chunk of it takes longer on a CPU than the signal leaves."""
    if backend.prepare().name != "cpu":
        pytest.skip("a GPU has read it by then")
    with Terminal("--model", str(STARTER_FOLDER), "--scheme", "turbo4", *arguments) as terminal:
        terminal.sees("Ask something", "Ready.")
        terminal.press("\x1b[200~" + TALE * 12 + "\x1b[201~")
        terminal.sees("[pasted text 1")
        terminal.press("enter")
        terminal.until(lambda: re.search(r"Reading \S+ (256|512|768) of", terminal.text()))
        terminal.process.kill(number)
        ends_in_order(terminal, number)
    (message,) = stored_messages(paths)
    (saved,) = Vault(paths.caches).entries()
    assert message.role == "user" and saved.bytes
    with Terminal("--model", str(STARTER_FOLDER), "--scheme", "turbo4") as terminal:
        terminal.sees("Restored", "the next message re-reads")
        terminal.quit()


@pytest.mark.parametrize("ignores_hangup", [False, True], ids=["", "nohup"])
def test_a_closed_terminal_ends_the_app_and_saves_the_reply(
    ignores_hangup: bool, model: str, paths: Paths
) -> None:
    with Terminal("--model", model, ignores_hangup=ignores_hangup) as terminal:
        terminal.sees("Ask something", "Ready.")
        terminal.write(QUESTION)
        terminal.sees("word9 ")
        terminal.process.ptyproc.fileobj.close()
        _, status = os.waitpid(terminal.process.pid, 0)
        terminal.process.ptyproc.closed = terminal.process.ptyproc.terminated = (
            terminal.process.terminated
        ) = True
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    (reply,) = replies(paths)
    assert "word9" in reply


def is_stopped(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="cannot see whether a process is stopped")
def test_the_whole_screen_is_drawn_again_when_the_app_returns_to_the_foreground(model: str) -> None:
    with Terminal("--model", model) as terminal:
        terminal.sees("Ask something", "Ready.")
        terminal.write(QUESTION)
        terminal.sees("word9 ")
        terminal.process.kill(signal.SIGTSTP)
        terminal.until(lambda: b"\x1b[?1049l" in terminal.raw)
        terminal.until(lambda: is_stopped(terminal.process.pid))  # a signal before it would be lost
        terminal.process.kill(signal.SIGCONT)
        terminal.until(lambda: terminal.raw.count(b"\x1b[?1049h") == 2)
        returned = terminal.raw.rfind(b"\x1b[?1049h")
        terminal.until(lambda: b"palette" in terminal.raw[returned:])
        assert b"tqchat" in terminal.raw[returned:]
        terminal.quit()


def hidden_files(paths: Paths) -> list[Path]:
    """The temporary files that a killed process could leave behind."""
    assert paths.home is not None
    return [path for path in paths.home.rglob(".*") if path.is_file()]


def unsent_texts(paths: Paths) -> str:
    with Database(paths.database) as database:
        drafts = [one.draft for one in database.conversations()]
    return "\n".join([*drafts, paths.unsent_text.read_text() if paths.unsent_text.exists() else ""])


def answered(paths: Paths, question: str) -> bool:
    messages = stored_messages(paths)
    asked = {message.id for message in messages if message.content == question}
    return any(one.parent_id in asked and one.status != "unfinished" for one in messages)


def test_signals_while_a_model_is_downloaded_a_prompt_read_a_scheme_changed_and_a_cache_saved(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start goes on where the one before was ended, and the last leaves nothing behind."""
    paths.config_file.write_text('temperature = 0.0\nmax_tokens = 4\nscheme = "fp16"\n')
    folder, temporary = tiny_llama(tmp_path / "long", max_position_embeddings=32_768), tmp_path / "temporary"
    temporary.mkdir()
    with serving(folder, tmp_path / "hub", monkeypatch) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "TMPDIR": str(temporary)}
        hub.hold.clear()
        with Terminal("--model", REPO, **environment) as terminal:
            terminal.sees("Ask something")
            terminal.until(hub.holding.is_set)
            terminal.write("What is a fox?")
            terminal.until(lambda: stored_messages(paths))
            terminal.press("Not sent")
            terminal.sees("Not sent")
            terminal.process.kill(signal.SIGTERM)
            ends_in_order(terminal, signal.SIGTERM)
        hub.hold.set()

        with Terminal("--model", REPO, **environment) as terminal:
            terminal.sees("Not sent", "Not answered")
            terminal.press("ctrl+n")
            terminal.sees("Ask something")
            terminal.press("\x1b[200~" + "a fox " * 6_000 + "\x1b[201~")
            terminal.sees("[pasted text 1")
            terminal.press("enter")
            terminal.until(lambda: any("a fox a fox" in one.content for one in stored_messages(paths)))
            terminal.press("Neither this")
            terminal.sees("Neither this")
            terminal.process.kill(signal.SIGHUP)
            ends_in_order(terminal, signal.SIGHUP)
        resumed = [given for _, path, given in hub.requests if path.endswith(".safetensors") and given]
        assert resumed == [f"bytes={len(hub.files['model.safetensors']) // 2}-"]

        with Terminal("--model", REPO, **environment) as terminal:
            # A first message that nothing was read of goes back into the prompt, before the text there; one
            # that was read in part stays.
            terminal.until(lambda: "Neither this" in unsent_texts(paths))
            terminal.until(lambda: "Ready." in terminal.text() or "Not answered" in terminal.text())
            terminal.press("ctrl+c", "ctrl+n")
            terminal.sees("Ask something", "Write a message")
            terminal.write("What is an owl?")
            terminal.until(lambda: answered(paths, "What is an owl?"))
            terminal.press("/scheme turbo4", "enter")
            terminal.process.kill(signal.SIGQUIT)
            ends_in_order(terminal, signal.SIGQUIT)

        with Terminal("--model", REPO, **environment) as terminal:
            terminal.sees("What is an owl?")
            terminal.press("Not sent either")
            terminal.sees("Not sent either")
            terminal.process.kill(signal.SIGINT)  # while the model is loaded, or soon after
            ends_in_order(terminal, signal.SIGINT)

    with Terminal("--model", REPO, TMPDIR=str(temporary)) as terminal:
        terminal.sees("What is an owl?", "Not sent either")
        terminal.until(
            lambda: any(said in terminal.text() for said in ("Restored", "Converted", "The saved cache"))
        )
        terminal.until(lambda: not hidden_files(paths))
        terminal.quit()
    assert not hidden_files(paths) + list((paths.data_dir / "leases").iterdir()) + list(temporary.iterdir())


@pytest.mark.parametrize("number", SIGNALS)
def test_run_prints_what_it_has_and_ends(number: signal.Signals, model: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tqchat", "run", QUESTION, "--model", model, "--max-tokens", "900"],
        bufsize=0,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    begun = process.stdout.read(1)
    process.send_signal(number)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert WORDS.startswith((begun + output).decode().strip())
    assert errors.decode().endswith("tqchat: Interrupted.\n") and b"Traceback" not in errors


def test_run_ends_while_the_model_is_loaded(model: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "tqchat", "run", QUESTION, "--model", model],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if b"mlx.core" in line:
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert output.strip() == b"" and errors.decode().endswith("tqchat: Interrupted.\n")


def test_a_reply_cut_off_at_a_limit_goes_on_after_a_restart(model: str, paths: Paths) -> None:
    paths.config_file.write_text("temperature = 0.0\nmax_tokens = 12\n")
    with Terminal("--model", model) as terminal:
        terminal.sees("Ask something", "Ready.")
        terminal.write(QUESTION)
        terminal.sees("cut at the length limit")
        terminal.quit()
    (before,) = replies(paths)
    with Terminal("--model", model) as terminal:
        terminal.sees("stopped: F4 continues", "Restored")
        terminal.press("\x1bOS")
        terminal.until(lambda: len(replies(paths)[0]) > len(before) + 10)
        terminal.sees("cut at the length limit")
        terminal.quit()
    (after,) = replies(paths)
    assert after.startswith(before) and WORDS.startswith(after.strip())
