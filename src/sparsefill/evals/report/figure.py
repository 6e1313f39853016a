"""One picture of a report: SVG inside the page, and a file of its own."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from sparsefill.evals.report.markup import Markup, element

SVG = "http://www.w3.org/2000/svg"
Number = float | int
FONT = "system-ui, sans-serif"
LETTER = 0.55  # width of a letter, in sizes of its font, where it is wide
TITLE = 13  # size of a title, which is bold: its letters are a fifth wider


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture.

    Args:
        name: of its file, without ending, and of its parts in the page.
        title: what it shows.
        description: for those who do not see it.
        body: elements.
    """

    name: str
    title: str
    description: str
    width: Number
    height: Number
    body: tuple[Markup, ...]

    def inline(self) -> Markup:
        """Return it as a part of a page, in the page's colours."""
        return element("figure", self._svg())

    def file(self) -> str:
        """Return it as a file, black on white."""
        ground = element("rect", width=num(self.width), height=num(self.height), fill="#ffffff")
        return self._svg(ground, xmlns=SVG, color="#111111") + "\n"

    def _svg(self, *ground: Markup, **attributes: str) -> Markup:
        return element(
            "svg",
            element("title", self.title, id=f"{self.name}-title"),
            element("desc", self.description, id=f"{self.name}-desc"),
            ground,
            self.body,
            **attributes,
            viewBox=f"0 0 {num(self.width)} {num(self.height)}",
            width=num(self.width),
            height=num(self.height),
            role="img",
            aria_labelledby=f"{self.name}-title {self.name}-desc",
            font_family=FONT,
        )


def num(value: Number) -> str:
    """Write a coordinate.

    Example:
        >>> num(12.0), num(3.14159)
        ('12', '3.14')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".")


def label(
    x: Number, y: Number, text: str, *, size: Number = 11, anchor: str = "middle", **more: object
) -> Markup:
    """Write text in a picture, in the colour of text unless another is given."""
    more.setdefault("fill", "currentColor")
    return element(
        "text", text, x=num(x), y=num(y), font_size=num(size), text_anchor=anchor, **more
    )


def width_of(text: str, *, size: Number) -> float:
    """Return about how wide a text is, rather too wide than too narrow."""
    return LETTER * size * len(text)


def title_of(text: str, *, x: Number) -> Markup:
    """Write the title of a picture."""
    return label(x, 18, text, size=TITLE, anchor="start", font_weight="600")


def width_of_title(text: str) -> float:
    """Return about how wide a title is."""
    return 1.2 * width_of(text, size=TITLE)


def file_name(*parts: str) -> str:
    """Make a name that a file and an element can have.

    Names that lose characters get a sum of them instead, so that no two are alike.

    Example:
        >>> file_name("score", "ruler/vt"), file_name("needle", "a b")
        ('score-ruler-vt', 'needle-a-b-de339b49')
    """
    whole = "-".join(parts)
    clean = re.sub(r"[^A-Za-z0-9_]", "-", whole)
    if clean == whole.replace("/", "-"):
        return clean
    return f"{clean[:80]}-{zlib.crc32(whole.encode('utf-8', 'replace')):08x}"
