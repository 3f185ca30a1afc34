"""Paths below a folder without ignored ones, and fuzzy search in them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tqchat.ui.input import file_tree
from tqchat.ui.input.completion import completions
from tqchat.ui.input.file_tree import fuzzy_matches, paths_below

FILES = (
    "a.log",
    "b.txt",
    "keep.log",
    "build/x.o",
    "src/build/y.o",
    "src/main.py",
    "src/main.pyc",
    "src/gen/one.py",
    "src/gen/two.py",
    "docs/index.html",
    "docs/api/index.html",
    "docs/api/deep/page.html",
    "logs/2024/a.txt",
    "logs/b.txt",
    "#note.txt",
    "!odd.txt",
    "tmp/a/b/c.txt",
    "tmp/keep/d.txt",
    "foo/bar/baz.txt",
    "x/foo/bar/baz.txt",
    "file[1].txt",
    "sub/own.txt",
    "sub/other.txt",
    "end",
    "/sp",
    "data1.csv",
    "data2.csv",
    "datax.csv",
    "out/ab.txt",
    "out/cb.txt",
    "docs/kept.md",
)
TOP = r"""
# comment
*.log
!keep.log
/build/
*.pyc
src/gen/*
!src/gen/two.py
docs/**/index.html
logs/**
**/deep
tmp/*
!tmp/keep
foo/bar
\#note.txt
\!odd.txt
file\[1\].txt
data[12].csv
out/[!a]b.txt
"""
NESTED = "/own.txt\n*.html\n!x\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    for name in FILES:
        file = folder / name.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    (folder / ".gitignore").write_text(TOP)
    (folder / "sub" / ".gitignore").write_text(NESTED)
    return folder


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("below", ["", "src", "sub", "docs"])
def test_the_paths_are_those_that_git_lists(tree: Path, below: str) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tree / below), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    if below:
        shutil.rmtree(tree / below / ".git")
        subprocess.run(["git", "-C", str(tree), "init", "-q"], check=True)
    (tree / ".git" / "info" / "exclude").write_text("end\n")
    listed = git("ls-files", "-z", "--others", "--exclude-standard").split("\0")
    wanted = {name for name in listed if name and not name.rpartition("/")[2].startswith(".")}
    assert {path for path in paths_below(tree / below) if not path.endswith("/")} == wanted
    assert wanted, "the test compares something"


def test_a_listing_is_bounded_and_begins_near_the_start(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_tree, "MAX_PATHS", 12)
    found = paths_below(tree)
    assert len(found) == 12 and all(path.rstrip("/").count("/") == 0 for path in found)
    (tree / "loop").symlink_to(tree)
    monkeypatch.setattr(file_tree, "MAX_PATHS", 1_000)
    assert not any(path.startswith("loop/") for path in paths_below(tree))


def test_fuzzy_search_ranks_names_before_folders() -> None:
    paths = ["src/main.py", "src/maintain/x.py", "docs/remains.md", "m/a/i/n.txt", "README.md"]
    assert fuzzy_matches("main", paths) == [
        "src/main.py", "docs/remains.md", "src/maintain/x.py", "m/a/i/n.txt",
    ]  # fmt: skip
    assert fuzzy_matches("smpy", paths) == ["src/main.py", "src/maintain/x.py"]
    assert fuzzy_matches("zzz", paths) == []


def test_a_name_deep_in_the_tree_completes(tree: Path) -> None:
    paths = paths_below(tree)
    (found,) = completions("see @mainpy", [], folder=tree, paths=paths)
    assert (found.start, found.insert, found.continues) == (5, "src/main.py ", False)
    labels = [one.label for one in completions("@k", [], folder=tree, paths=paths)]
    assert labels[0] == "@keep.log", "what is written begins it"
    assert not completions("@b.lo", [], folder=tree, paths=paths), "ignored"
    assert next(one.label for one in completions("@buil", [], folder=tree, paths=paths)) == "@src/build/"
