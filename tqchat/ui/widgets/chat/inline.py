"""Parses the text of a paragraph: emphasis, links, code, formulas."""

from __future__ import annotations

import re

from markdown_it.token import Token
from textual.content import Content

from tqchat.text import one_line, stable_width
from tqchat.ui.markdown import latex
from tqchat.ui.markdown.parser import inline_parser

MAX_INLINE_CHARACTERS = 6_000
"""Longer paragraphs and cells stay plain text: inline parsing takes time quadratic in their length."""
_STYLES = {"em_open": "italic", "strong_open": "bold", "s_open": "strike", "link_open": "underline"}
_URL_SCHEME = re.compile(r"\Ahttps?://|\Amailto:")
_URL_END = re.compile("[\u3000-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]")
"""CJK punctuation, which ends an address that stands in a sentence."""
_DEFINITION = re.compile(r"\[[^\]]+\]:")
"""The beginning of a link reference definition or a footnote."""


def inline(text: str) -> Content:
    """A paragraph's text with styles instead of its markup."""
    if len(text) > MAX_INLINE_CHARACTERS:
        return Content(text)
    (parsed,) = inline_parser().parseInline(text)
    children = parsed.children or []
    parts: list[Content] = []
    styles: list[str] = []
    link: Token | None = None
    for index, child in enumerate(children):
        if child.type in _STYLES:
            styles.append(_STYLES[child.type])
            link = child if child.type == "link_open" else link
        elif child.type.endswith("_close"):
            styles.pop()
            if child.type == "link_close" and link is not None:
                parts += _target(link, parts[-1].plain if parts else "")
                link = None
        else:
            said, own = _text(child, children[index + 1] if index + 1 < len(children) else None)
            # The parser has replaced character references, such as that of a bidirectional override.
            said = stable_width(said) if "&" in text else said
            style = " ".join([*styles, own]).strip()
            if link is not None and link.markup == "linkify" and (end := _URL_END.search(said)):
                parts += [Content.styled(said[: end.start()], style), Content(said[end.start() :])]
            else:
                parts.append(Content.styled(said, style))
    return Content("").join(parts)


def _text(token: Token, following: Token | None) -> tuple[str, str]:
    """Text shown for a token, and its style."""
    match token.type:
        case "softbreak":
            # Definitions are a list, in which each begins a line.
            return ("\n" if following and _DEFINITION.match(following.content) else " "), ""
        case "hardbreak":
            return "\n", ""
        case "image":
            return f"[image: {token.content}]{_address(token, 'src')}", "$quiet"
        case "code_inline":
            return token.content, "$warning"
        case latex.INLINE:
            return token.content.replace("\n", " "), ""
        case _:
            return token.content, ""


def _target(link: Token, text: str) -> list[Content]:
    """The target of a link, unless its text shows it: links cannot be opened here."""
    target = str(link.attrs.get("href", ""))
    shown, real = (_URL_SCHEME.sub("", one).rstrip("/") for one in (text, target))
    is_bare = link.markup == "linkify" or not target or shown == real
    if is_bare and not link.attrs.get("title"):
        return []
    return [Content.styled(_address(link, "href"), "$quiet")]


def _address(token: Token, name: str) -> str:
    """``(address "title")``, as far as there are any."""
    address, title = str(token.attrs.get(name, "")), str(token.attrs.get("title", ""))
    parts = [address, f'"{title}"' if title else ""]
    said = one_line(" ".join(part for part in parts if part))
    return f" ({said})" if said else ""
