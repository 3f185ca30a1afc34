"""``tqchat completion``: prints a script that completes the command line in a shell."""

from __future__ import annotations

import argparse
import re

from tqchat.errors import TqchatError
from tqchat.kv.scheme import SCHEMES

SHELLS = ("bash", "zsh", "fish")
PROPOSERS = "auto prompt none"

_BASH = r"""_tqchat_ids() {
  local program=${COMP_WORDS[0]/#\~/$HOME}
  compgen -W "$("$program" ls 2>/dev/null | sed -n 's/^\([[:alnum:]_-]*\)  .*/\1/p')" -- "$1"
}
_tqchat_repos() {
  local folder
  for folder in "${HF_HUB_CACHE:-${HF_HOME:-$HOME/.cache/huggingface}/hub}"/models--*/; do
    folder=${folder%/} folder=${folder##*/models--}
    [ "$folder" = "*" ] || echo "${folder/--//}"
  done
}
_tqchat_model_dirs() {
  compgen -W "$(_tqchat_repos)" -- "$1"
  compgen -d -- "$1"
}
_tqchat_draft_dirs() {
  compgen -W "PROPOSERS" -- "$1"
  _tqchat_model_dirs "$1"
}
_tqchat_attached() {
  local word=${1#@} file
  # In most settings @ separates words here, but not where the completion is put in.
  [ "$word" != "$1" ] || [ "${COMP_WORDS[COMP_CWORD-1]}" = @ ] || return
  compgen -f -- "$word" | while IFS= read -r file; do
    if [ -d "$file" ]; then
      # With what is in it, it does not count as complete, which would add a space.
      echo "$file/"
      compgen -f -- "$file/"
    else
      echo "$file"
    fi
  done | while IFS= read -r file; do printf '@%q\n' "$file"; done
}"""
_ZSH = r"""_tqchat_ids() {
  local -a ids
  local line='^\([[:alnum:]_-]*\)  [^ ]* [^ ]*  [^ ]*  *\(.*\)'
  ids=(${(f)"$(_call_program ids tqchat ls 2>/dev/null | sed -n "s/$line/\1:\2/p")"})
  _describe -V conversation ids
}
_tqchat_repos() {
  local -a repos
  repos=(${HF_HUB_CACHE:-${HF_HOME:-$HOME/.cache/huggingface}/hub}/models--*(N/:t))
  compadd -- ${${repos#models--}/--//}
}
_tqchat_model_dirs() { _alternative 'repos:repository:_tqchat_repos' 'folders:folder:_files -/' }
_tqchat_draft_dirs() {
  _alternative 'values:value:(PROPOSERS)' 'repos:repository:_tqchat_repos' 'folders:folder:_files -/'
}
_tqchat_attached() { compset -P @ && _files }"""
_FISH = r"""function _tqchat_ids
  set -l words (commandline -opc)
  $words[1] ls 2>/dev/null | string replace -rf '^(\S+)  \S+ \S+  \S+ +(.*)$' '$1\t$2'
end
function _tqchat_model_dirs
  set -l hub $HOME/.cache/huggingface/hub
  set -q HF_HOME; and set hub $HF_HOME/hub
  set -q HF_HUB_CACHE; and set hub $HF_HUB_CACHE
  for folder in $hub/models--*/
    string replace -rf '^.*/models--(.*?)--(.*)/$' '$1/$2' -- $folder
  end
  __fish_complete_directories (commandline -ct) ''
end
function _tqchat_draft_dirs
  string split ' ' 'PROPOSERS'
  _tqchat_model_dirs
end
function _tqchat_attached
  set -l word (commandline -ct)
  string match -q '@*' -- $word; or return
  for file in (__fish_complete_path (string sub -s 2 -- $word))
    echo @$file
  end
end"""
_FUNCTIONS = {
    "ID": "_tqchat_ids",
    "id": "_tqchat_ids",
    "MODEL": "_tqchat_model_dirs",
    "WHAT": "_tqchat_draft_dirs",
    "question": "_tqchat_attached",
}
"""Functions that complete an argument, by its name in the help.

What those named ``dirs`` print are paths to bash, which would quote an @.
"""


class NoShtab(TqchatError):
    """The library that writes completion scripts is not installed."""

    exit_code = 2

    def __init__(self) -> None:
        super().__init__(
            "Completion scripts need the package shtab; install it with `pip install 'tqchat[completion]'`."
        )


def main(parser: argparse.ArgumentParser, shell: str) -> int:
    """Print the script that completes commands, options and their values in a shell.

    Raises:
        NoShtab: if shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise NoShtab from error
    _complete_values(parser, shtab.FILE, shtab.DIRECTORY)
    functions = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[shell].replace("PROPOSERS", PROPOSERS)
    script = shtab.complete(parser, shell=shell, preamble=functions)
    if shell == "zsh":
        # shtab has only the first word of a list completed.
        script = re.sub(r'"\(\*\)::?', '"*:', script)
    print(script)
    return 0


def _complete_values(parser: argparse.ArgumentParser, files: object, folders: object) -> None:
    """Let arguments that name conversations, schemes, models, files and folders complete as such.

    The parser is only described afterwards: it would refuse other spellings of schemes.
    """
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_values(command, files, folders)
            continue
        name = action.metavar if isinstance(action.metavar, str) else action.dest
        if name == "SCHEME":
            action.choices = ["auto", *(scheme.name for scheme in SCHEMES)]
        elif (function := _FUNCTIONS.get(name)) is not None:
            by_shell = {"bash": function, "zsh": function, "fish": f"({function})"}
            action.complete = by_shell  # type: ignore[attr-defined]
        elif name == "FOLDER":
            action.complete = folders  # type: ignore[attr-defined]
        elif "FILE" in name or "OUT" in name or "." in name:
            action.complete = files  # type: ignore[attr-defined]
