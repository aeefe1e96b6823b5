"""This module draws the QR codes that pages of the portal show."""
# Tested by tests/portal/test_pages.py and tests/portal/test_me.py

from __future__ import annotations

from markupsafe import Markup


def qr_code(text: str, border: int = 0) -> Markup:
    """Return the QR code of a text as an SVG element without style attributes.

    `border` is the width of the white border, in squares of the code."""
    import segno  # segno is imported here, because only pages with a QR code need it.

    image = segno.make(text, error="m", micro=False)
    svg = image.svg_inline(
        border=border, omitsize=True, svgclass="qr" if border else None, lineclass=None, dark="#000", light="#fff"
    )
    return Markup(svg)  # noqa: S704 - the library writes only paths
