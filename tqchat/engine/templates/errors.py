"""Errors of prompt rendering."""

from __future__ import annotations

from tqchat.errors import TqchatError


class PromptRejected(TqchatError):
    """The model's chat template cannot take this conversation."""


class PromptStopped(PromptRejected):
    """The user stopped a prompt that takes long to render."""


class TemplateError(Exception):
    """A chat template failed: its own ``raise_exception``, a Jinja error, or a limit of the sandbox."""


class TemplateLimit(TemplateError):
    """A chat template exceeded the sandbox's limits on time and size."""


class TemplateStopped(Exception):
    """The user stopped the rendering."""
