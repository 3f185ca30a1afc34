from __future__ import annotations

import builtins
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.cli.test_cli import Captured, fails
from tqchat.cli import main
from tqchat.commands.completion import SHELLS
from tqchat.paths import Paths
from tqchat.store.database import Database

pytest.importorskip("shtab")


def completed(script: Path, folder: Path, *words: str) -> set[str]:
    """What bash offers for the last of these words."""
    asked = (
        'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE};'
        '$(complete -p tqchat | sed "s/.*-F \\([^ ]*\\) .*/\\1/"); printf "%s\\n" "${COMPREPLY[@]}"'
    )
    # Its functions are called in this shell, so that COMPREPLY is seen.
    asked = asked.replace("$(complete", 'eval "$(complete').replace('/\\1/")', '/\\1/")"')
    command = ["bash", "--norc", "-c", asked, str(script), "tqchat", *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    return {word.rstrip(" /") for word in result.stdout.split("\n") if word}


@pytest.mark.skipif(shutil.which("bash") is None, reason="this system has no bash")
def test_bash_completes_commands_options_and_files(tmp_path: Path) -> None:
    """The real program writes the script, and a real bash runs it."""
    command = [sys.executable, "-m", "tqchat", "completion", "bash"]
    script = tmp_path / "script"
    script.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (tmp_path / "notes.json").touch()
    assert {"export", "import", "run", "open", "rm", "lab"} <= completed(script, tmp_path, "")
    assert completed(script, tmp_path, "exp") == {"export"}
    assert {"--continue", "--conversation"} == completed(script, tmp_path, "run", "--con")
    assert completed(script, tmp_path, "export", "--format", "") == {"md", "json"}
    assert completed(script, tmp_path, "cache", "w") == {"wipe"}
    assert completed(script, tmp_path, "--scheme", "turbo8") == {"turbo8v4", "turbo8v3", "turbo8v2"}
    assert completed(script, tmp_path, "run", "--scheme", "a") == {"auto", "affine8", "affine4"}
    assert completed(script, tmp_path, "lab", "eval", "--json", "no") == {"notes.json"}
    assert completed(script, tmp_path, "import", "no") == {"notes.json"}


INTERACTIVE = {
    "bash": ("bash", "--norc", "-i"),
    "zsh": ("zsh", "-f", "-i"),
    "fish": ("fish", "--no-config", "-i"),
}
LOADS = {
    "bash": "source {0}",
    "zsh": "autoload -Uz compinit; compinit -u -D; source {0}; compdef _shtab_tqchat tqchat",
    "fish": "source {0}",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_tab_completes_conversations_models_and_attached_files(
    tmp_path: Path, paths: Paths, shell: str
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"this system has no {shell}")
    with Database(paths.database) as database:
        # Another, so that the id is not the only candidate.
        ids = [database.create(f"Foxes: {number}", None, "turbo4").id[:8] for number in range(2)]
    (tmp_path / "notes.txt").touch()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "b c.md").touch()
    (tmp_path / "hub" / "models--org--small-4bit").mkdir(parents=True)
    script = tmp_path / "script"
    made = [sys.executable, "-m", "tqchat", "completion", shell]
    script.write_text(subprocess.run(made, capture_output=True, text=True, check=True).stdout)
    program = tmp_path / "bin" / "tqchat"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n[ "$1" = ls ] && exec {sys.executable} -m tqchat ls\nprintf "<%s>" "$@" "end"; echo\n'
    )
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HOME": str(tmp_path),
        "TERM": "xterm",
    }
    program_, *arguments = INTERACTIVE[shell]
    terminal = pexpect.spawn(
        program_, arguments, env=environment, cwd=str(tmp_path), dimensions=(40, 160), timeout=30
    )
    terminal.sendline(LOADS[shell].format(script) + "; echo rea''dy")
    terminal.expect("ready")
    for line, words in (
        (f"show {ids[1][:6]}", ["show", ids[1]]),
        (f"rm {ids[0]} {ids[1][:6]}", ["rm", *ids]),
        ("run --draft pro", ["run", "--draft", "prompt"]),
        ("--draft org", ["--draft", "org/small-4bit"]),
        ("--model org", ["--model", "org/small-4bit"]),
        ("run What is in @no", ["run", "What", "is", "in", "@notes.txt"]),
        ("run What is in @do\tb", ["run", "What", "is", "in", "@docs/b c.md"]),
        ("run What is no", ["run", "What", "is", "no"]),
    ):
        terminal.send(f"tqchat {line}\t")
        terminal.send("\r")
        terminal.expect_exact("".join(f"<{word}>" for word in [*words, "end"]))
    terminal.close(force=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script_that_it_can_read(capsys: Captured, tmp_path: Path, shell: str) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("completion", "--dry-run", "--conversation", "wipe", "profile"):
        assert word.removeprefix("--") in script
    if shutil.which(shell) is not None:
        (tmp_path / "script").write_text(script)
        assert subprocess.run([shell, "-n", str(tmp_path / "script")]).returncode == 0


def test_other_shells_and_a_missing_library(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as left:
        main(["completion", "cmd"])
    assert left.value.code == 2
    capsys.readouterr()
    real = builtins.__import__

    def without_shtab(name: str, *rest: Any, **named: Any) -> Any:
        if name == "shtab":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_shtab)
    assert "pip install 'tqchat[completion]'" in fails(capsys, 2, "completion", "bash")
