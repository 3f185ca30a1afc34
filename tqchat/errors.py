"""Base class of all errors that tqchat shows to the user."""

from __future__ import annotations


class TqchatError(Exception):
    """An error whose message is shown to the user as it is: what happened and what to do.

    ``exit_code`` is the exit code of the command line.
    """

    exit_code = 1
