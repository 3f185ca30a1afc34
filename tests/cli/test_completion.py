from __future__ import annotations

import builtins
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import Captured, fails
from tqchat.cli import main
from tqchat.commands.completion import SHELLS

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
