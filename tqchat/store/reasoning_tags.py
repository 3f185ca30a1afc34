"""Reasoning in replies of older versions, which stored it with its tags at the start of the text."""

from __future__ import annotations

TAGS = ("think", "thinking", "thought", "reasoning", "longcat_think", "seed:think")
_SPACE = " \t\n\r"


def split_reasoning(content: str) -> tuple[str | None, str]:
    """Reasoning (``None`` without any) and answer of such a reply, as the migration to format 4 splits it.

    Some chat templates write the opening tag: then the text has only the closing one, at the start of a line
    and outside of code blocks. A text with a NUL is left whole.
    """
    if "\0" in content:
        return None, content
    begins = content.lstrip(_SPACE)
    for tag in TAGS:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if begins.startswith(opening):
            thought, _, answer = begins.removeprefix(opening).partition(closing)
            return thought.strip(_SPACE), answer.lstrip(_SPACE)
        thought, alone, answer = content.partition(f"\n{closing}")
        if alone and opening not in content and thought.count("```") % 2 == 0:
            return thought.strip(_SPACE), answer.lstrip(_SPACE)
    return None, content
