from __future__ import annotations

import json
from pathlib import Path

import pytest

from tqchat.cli import main
from tqchat.lab.results import Results
from tqchat.lab.tables import scheme_table

KEYS = [
    "scheme",
    "kld_mean",
    "kld_median",
    "kld_p99",
    "top1",
    "ppl",
    "bytes",
    "fp16_bytes",
    "ratio",
    "recall",
]


@pytest.fixture
def text(tmp_path: Path, prose: str) -> Path:
    file = tmp_path / "some text.txt"
    file.write_text(prose, "utf-8")
    return file


def test_eval_writes_results_a_picture_and_a_table(
    llama_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recall, out, plot = (tmp_path / name for name in ("recall.jsonl", "out.json", "out.svg"))
    recall.write_text('{"messages": [{"role": "user", "content": "Hello"}], "answer": "not to be found"}\n\n')
    command = [
        "lab",
        "eval",
        "--model",
        str(llama_folder),
        "--schemes",
        "fp16,turbo4,mlx4",
        "--tokens",
        "200",
    ]
    command += ["--text", str(text), "--recall", str(recall), "--json", str(out), "--plot", str(plot)]
    assert main(command) == 0
    told = json.loads(out.read_text("utf-8"))
    assert list(told) == ["model", "text", "tokens", "rows"]
    assert (told["text"], told["tokens"]) == ("some text.txt", 200)
    assert [list(row) for row in told["rows"]] == [KEYS] * 3
    assert [row["recall"] for row in told["rows"]] == [0.0, 0.0, None]
    assert plot.read_text("utf-8").startswith("<svg")
    printed = capsys.readouterr()
    assert "| `turbo4`" in printed.out
    assert "%" in printed.err
    assert Results.read(out).rows[1].scheme == "turbo4"

    again = tmp_path / "again.svg"
    assert main(["lab", "plot", str(out), str(again)]) == 0
    assert again.read_text("utf-8") == plot.read_text("utf-8")


def test_profile_is_measured_and_saved(
    llama_folder: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "profile", str(llama_folder), "--tokens", "60"]) == 0
    (file,) = (home / "cache" / "profiles").glob("*.json")
    assert str(file) in capsys.readouterr().out


def test_the_scheme_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "schemes"]) == 0
    assert capsys.readouterr().out == scheme_table() + "\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--text", "absent.txt"], "absent.txt cannot be read (no such file or directory)"),
        (["--text", "TEXT", "--schemes", "turbo7"], "no cache scheme 'turbo7'"),
        (["--text", "TEXT", "--tokens", "9999"], "reads at most 512 tokens"),
        (["--text", "TEXT", "--tokens", "1"], "At least 2 tokens"),
        (["--text", "TEXT", "--recall", "TEXT"], "Line 1 of"),
        (["--text", "TEXT", "--json", "no/folder/x.json"], "does not exist"),
        (["--text", "TEXT", "--outliers", "0"], "must be a positive number"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    llama_folder: Path,
    text: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    sentence: str,
) -> None:
    given = [str(text) if option == "TEXT" else option for option in options]
    assert main(["lab", "eval", "--model", str(llama_folder), *given]) in (1, 2)
    assert sentence in capsys.readouterr().err


def test_a_file_that_is_not_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"rows": [{"scheme": "fp16"}]}')
    assert main(["lab", "plot", str(other), str(tmp_path / "x.svg")]) == 2
    assert "does not hold results" in capsys.readouterr().err
