"""This module draws the QR codes that pages of the portal show."""
# Tested by tests/portal/test_pages.py and tests/portal/test_me.py

from __future__ import annotations

from markupsafe import Markup


def qr_code(text: str, label: str, border: int = 0) -> Markup:
    """Return the QR code of a text as an SVG element without style attributes.

    `label` describes the code to people who do not see it. `border` is the width of the white border, in squares of the code."""
    import segno  # segno is imported here, because only pages with a QR code need it.

    image = segno.make(text, error="m", micro=False)
    svg = image.svg_inline(
        border=border, omitsize=True, svgclass="qr" if border else None, lineclass=None, dark="#000", light="#fff"
    )
    # The text needs no escaping, because the library writes one <svg> element that contains only paths.
    described = Markup('<svg role="img" aria-label="{}"').format(label)
    return described + Markup(svg.removeprefix("<svg"))  # noqa: S704 - segno made it
