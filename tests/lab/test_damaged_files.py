"""A short run of ``tqchat lab endure --files``; ``TQCHAT_FILES=10000`` for a long one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tqchat.lab.endure import CheckFailed, content, damaged_files

FILES = int(os.environ.get("TQCHAT_FILES", "25"))
SEED = os.environ.get("TQCHAT_SEED", "endure")


def test_every_reader_uses_or_refuses_mutated_files(tmp_path: Path) -> None:
    names = damaged_files.reader_names()
    counts = damaged_files.endure(names, FILES, tmp_path, SEED)
    assert [count.name for count in counts] == names
    for count in counts:
        assert count.files == FILES == count.used + count.refused
    # Each reader reads its intact files first; of a few mutations, all may be refused.
    assert sum(count.used for count in counts) > len(counts)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("raise ValueError('oops')", "ValueError: oops"),
        ("raise TqchatError('two' + chr(10) + 'lines')", "no sentence"),
        ("os.kill(os.getpid(), 11)", "The process ended"),
        ("while True: pass", "The process ended|Reading takes more"),  # the first where a core is free
        ("bytearray(1 << 29)", "bytes"),
    ],
)
def test_the_checks_notice_a_reader_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    # A reader that fails, put into the process before it starts.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if any('damaged_files' in part for part in sys.orig_argv):\n"
        "    import os, tqchat.lab.endure.readers as readers\n"
        "    from tqchat.errors import TqchatError\n"
        "    from tqchat.lab.endure import damaged_files\n"
        "    calls = []\n"
        "    def read(folder):\n"
        "        calls.append(folder)\n"
        "        if len(calls) > 1:\n"
        f"            {line}\n"
        "    def write(folder):\n"
        "        (folder / 'file').write_text('text')\n"
        "        return {folder / 'file': 'text'}\n"
        "    readers.READERS = (readers.Reader('failing', write, read),)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(CheckFailed, match=said):
        damaged_files.endure(["failing"], 3, tmp_path / "work", SEED)


def test_an_unknown_reader_is_named() -> None:
    with pytest.raises(CheckFailed, match="There is no reader nothing; the readers are config, state"):
        damaged_files.chosen("config, nothing")


def test_mutations_are_reproducible_and_change_the_content() -> None:
    intact = b'{"a": [1, 2, {"b": "text"}], "c": null}'
    made = [content.mutate(random.Random(seed), intact, "json") for seed in range(300)]
    assert made == [content.mutate(random.Random(seed), intact, "json") for seed in range(300)]
    assert sum(one != intact for one in made) > 280
    assert len(set(made)) > 200


def test_the_processes_need_no_terminal_and_no_home(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tqchat", "lab", "endure", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--files" in done.stdout and "--readers" in done.stdout
