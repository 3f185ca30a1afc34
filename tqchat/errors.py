"""The root of every error that tqchat shows to a person."""

from __future__ import annotations


class TqchatError(Exception):
    """Something a person can act on: the message is one plain sentence, shown as it stands.

    ``exit_code`` is what the command line leaves with.
    """

    exit_code = 1
