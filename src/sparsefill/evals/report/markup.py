"""HTML and SVG from nested elements: whatever is not markup already is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

VOID = frozenset({"meta", "br", "rect", "line", "circle", "path", "polyline"})
# neither control characters nor halves of surrogate pairs can stand in a page
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | Markup | None | Iterable[Any]  # of children, nested at will


def element(name: str, /, *children: Child, **attributes: object) -> Markup:
    """Write an element.

    Args:
        name: of the tag.
        children: text, escaped unless it is `Markup`; lists are flattened, None is left out.
        attributes: `class_` is `class` and `stroke_width` is `stroke-width`; None is left out.

    Example:
        >>> element("td", "a < b", class_="score")
        '<td class="score">a &lt; b</td>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(escape(child) for child in _flat(children))
    if name in VOID and not inside:
        return Markup(f"<{name}{written}>" if name in ("meta", "br") else f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{inside}</{name}>")


def escape(text: str) -> str:
    """Return text as it may stand in an element or attribute; markup stays as it is."""
    if isinstance(text, Markup):
        return text
    return html.escape(UNSEEN.sub(_shown, text))


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if isinstance(child, str):
            yield child
        elif child is not None:
            yield from _flat(child)


def _shown(found: re.Match[str]) -> str:
    """Stand in for a character that cannot be shown: a picture of it if there is one."""
    code = ord(found.group())
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"
