from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.adapters import write_adapter
from tqchat.cli import main
from tqchat.lab.results import Results
from tqchat.lab.tables import scheme_table
from tqchat.paths import Paths

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


def test_eval_and_profile_measure_the_model_with_an_adapter(
    llama_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = write_adapter(tmp_path / "pirate", llama_folder), tmp_path / "out.json"
    model = ["--model", str(llama_folder), "--adapter", str(adapter)]
    measured = ["--schemes", "turbo4", "--tokens", "64", "--text", str(text), "--json", str(out)]
    assert main(["lab", "eval", *model, *measured]) == 0
    assert json.loads(out.read_text("utf-8"))["model"] == f"{llama_folder.name} + pirate"
    assert main([*model[2:], "lab", "profile", str(llama_folder), "--tokens", "64"]) == 0
    assert f"{llama_folder.name} + pirate on the built-in text" in capsys.readouterr().out
    assert main(["lab", "eval", *model[:2], "--adapter", "nowhere", *measured]) == 2
    assert "There is no adapter folder 'nowhere'" in capsys.readouterr().err


def test_the_adapter_of_the_settings_belongs_to_the_model_of_the_settings(
    llama_folder: Path, text: Path, tmp_path: Path, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = write_adapter(tmp_path / "pirate", llama_folder), tmp_path / "out.json"
    paths.config_file.write_text(f"model = '{llama_folder}'\nadapter = '{adapter}'", "utf-8")
    measured = ["lab", "eval", "--schemes", "fp16", "--tokens", "64", "--text", str(text), "--json", str(out)]
    names = []
    for options in ([], ["--adapter", "off"], ["--model", str(llama_folder)]):
        assert main([*measured, *options]) == 0
        names.append(json.loads(out.read_text("utf-8"))["model"])
    plain = llama_folder.name
    assert names == [f"{plain} + pirate", plain, plain]
