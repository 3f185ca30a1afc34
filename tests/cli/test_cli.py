from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tqchat
from tqchat.cli import main
from tqchat.paths import Paths
from tqchat.store.database import Database

Captured = pytest.CaptureFixture[str]


def fails(capsys: Captured, code: int, *arguments: str) -> str:
    """Run a command that must fail with this exit code; returns its one line on standard error."""
    assert main(arguments) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("tqchat: ")
    assert output.err.count("\n") == 1
    return output.err


def test_version(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    folder = Path(tqchat.__file__).parent
    assert capsys.readouterr().out == f"tqchat {tqchat.__version__} from {folder}\n"


def test_an_unknown_option_prints_usage(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--nonsense"])
    assert left.value.code == 2
    assert "--nonsense" in capsys.readouterr().err


def test_without_a_terminal_the_error_names_tqchat_run(capsys: Captured, home: Path) -> None:
    assert "tqchat run" in fails(capsys, 2)
    assert not home.exists()


def test_in_a_folder_that_was_deleted(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for arguments in ([], ["run", "hi"], ["doctor"]):
        assert "change to another one" in fails(capsys, 1, *arguments)


def test_unknown_scheme(capsys: Captured) -> None:
    for arguments in (
        ["--scheme", "zip"],
        ["run", "hi", "--scheme", "zip"],
        ["--scheme", "zip", "run", "hi"],
    ):
        sentence = fails(capsys, 2, *arguments)
        assert "'zip'" in sentence
        assert "turbo<K>v<V>" in sentence


def test_an_invalid_config_file_is_named(capsys: Captured, paths: Paths) -> None:
    paths.config_file.write_text("scheme = [", "utf-8")
    assert str(paths.config_file) in fails(capsys, 2, "run", "hi")


def test_ls_without_a_database_creates_nothing(capsys: Captured, home: Path) -> None:
    assert main(["ls"]) == 0
    assert "No conversations yet" in capsys.readouterr().out
    assert not home.exists()


def test_ls_and_show(capsys: Captured, paths: Paths) -> None:
    with Database(paths.database) as database:
        old = database.create("Old one", None, "fp16")
        new = database.create("New\x1b]0;owned\x07 one\n", "starter", "turbo0v4")
        database.add_message(new.id, "user", "What is\x1b[2J a fox?")
        database.add_message(new.id, "assistant", "An animal.\n\nRed.\n", status="stopped")
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=4)[3:] for line in lines] == [["turbo0v4", "New one"], ["fp16", "Old one"]]
    assert [line[:8] for line in lines] == [new.id[:8], old.id[:8]]

    assert main(["show", new.id[:8]]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert shown.startswith("New one\n\n[you, 2")
    assert "]\nWhat is a fox?\n\n[assistant, 2" in shown
    assert shown.endswith(", stopped]\nAn animal.\n\nRed.\n")


def test_show_an_unknown_conversation(capsys: Captured, paths: Paths) -> None:
    assert "tqchat ls" in fails(capsys, 2, "show", "abc")
    Database(paths.database).close()
    assert "tqchat ls" in fails(capsys, 2, "show", "abc")


def test_a_damaged_database_is_reported(capsys: Captured, paths: Paths) -> None:
    paths.database.write_bytes(b"no database " * 1000)
    assert str(paths.database) in fails(capsys, 1, "ls")


def test_locate_prints_all_locations(capsys: Captured, paths: Paths) -> None:
    assert main(["locate"]) == 0
    shown = capsys.readouterr().out
    for place in (
        paths.config_file,
        paths.themes,
        paths.state_file,
        paths.database,
        paths.caches,
        paths.log_dir,
        os.environ["HF_HUB_CACHE"],
    ):
        assert f"  {place}\n" in shown


def test_an_empty_question(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "empty" in fails(capsys, 2, "run", "  ")
    for arguments in (["run"], ["run", "-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
        assert "empty" in fails(capsys, 2, *arguments)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    assert "UTF-8" in fails(capsys, 2, "run")


@pytest.mark.parametrize(
    ("option", "value"), [("--temperature", "9"), ("--max-tokens", "0"), ("--seed", "-1")]
)
def test_an_option_out_of_range(capsys: Captured, option: str, value: str) -> None:
    assert option in fails(capsys, 2, "run", "hi", f"{option}={value}")


def test_a_closed_pipe_exits_with_141(paths: Paths) -> None:
    with Database(paths.database) as database:
        conversation = database.create("t", None, "fp16")
        database.add_message(conversation.id, "user", "x" * 1_000_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "tqchat", "show", conversation.id],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141
    process.stderr.close()


def test_closed_standard_streams_are_no_error(paths: Paths) -> None:
    line = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", line, "sh", sys.executable, "-m", "tqchat", "ls"], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("command", ["locate", "--help", "--version", "models pull --help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_to_a_full_disk_is_reported(command: str, unbuffered: str) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    program = [sys.executable, "-m", "tqchat", *command.split()]
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert result.returncode == 1
    assert result.stderr.startswith("tqchat: Writing failed (no space left")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["locate", "--help", "--version", "models pull --help"])
def test_output_that_nobody_reads_ends_in_silence(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-m", "tqchat", *command.split()]
    result = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize(
    "ref", ["~nosuch/x", "a--b/c", "x" * 300, "/" + "x" * 300, "a/" + "b" * 300, "a\x1b[0m/b"]
)
def test_names_that_are_no_models_are_one_sentence(capsys: Captured, ref: str) -> None:
    said = fails(capsys, 2, "--model", ref, "run", "hi")
    assert "There is no model folder" in said and "\x1b" not in said
    said = fails(capsys, 2, "--adapter", ref, "run", "hi")
    assert "There is no adapter folder" in said and "\x1b" not in said


def test_pytorch_is_not_loaded_where_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('loaded')")
    code = (
        "import tqchat.cli\n"
        "try: tqchat.cli.main(['--version'])\n"
        "except SystemExit: pass\n"
        "import transformers.utils.import_utils as found, mlx_lm.utils\n"
        "assert not found.is_torch_available()\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)


def test_a_package_that_is_missing_is_one_sentence(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "mlx_lm.py").write_text("import no_such_package")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "tqchat", "run", "Hi."]
    ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        "tqchat: The installation is incomplete (No module named 'no_such_package'"
    )
    assert ended.stderr.count("\n") == 1
