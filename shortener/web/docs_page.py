"""Renders the OpenAPI document as one HTML page that contains no scripts and loads nothing from other hosts."""
# Tested by tests/web/test_openapi.py

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from shortener.errors import ErrorCode

_REF = "#/components/schemas/"
_SHOWN_KEYS = {
    "format": "{}",
    "pattern": "matches {}",
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
}

_templates = Environment(loader=PackageLoader("shortener.web", "pages"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
_style = Markup(_templates.get_template("docs.css").render())  # noqa: S704 - a file of this package
_style_hash = base64.b64encode(hashlib.sha256(_style.encode()).digest()).decode()

CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_style_hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(document: Mapping[str, Any]) -> bytes:
    """Return the HTML page of an OpenAPI document, encoded in UTF-8."""
    schemas = document["components"]["schemas"]
    operations = list(_operations(document))
    rendered = _templates.get_template("docs.html").render(
        document=document,
        style=_style,
        tags=[(tag["name"], [one for one in operations if tag["name"] in one["tags"]]) for tag in document["tags"]],
        schemas={name: schema for name, schema in schemas.items() if name != "ErrorCode"},
        error_codes=[(code.name, code.http_status, code.meaning) for code in ErrorCode],
        security_schemes=document["components"]["securitySchemes"],
    )
    return rendered.encode()


def _operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            located = {**operation, "method": method.upper(), "path": path}
            yield {**located, "curl": _curl(located)}


def _curl(operation: Mapping[str, Any]) -> str:
    """Return an example call of an endpoint as a curl command. It uses the shell variables BASE, KEY and TOKEN."""
    path = operation["path"]
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            path = path.replace(
                f"{{{parameter['name']}}}", quote(str(parameter.get("example", parameter["name"].upper())), safe="")
            )
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    method = operation["method"]
    words = [f"curl -s $BASE{path}" if method == ("POST" if content else "GET") else f"curl -s -X {method} $BASE{path}"]
    schemes = [name for choice in operation["security"] for name in choice]
    if "ApiKey" in schemes:
        words.append('-H "X-API-Key: $KEY"')
    if "TrackerToken" in schemes:
        words.append('-H "X-Api-Token: $TOKEN"')
    if content:
        body = orjson.dumps(content["example"]).decode().replace("'", "'\\''")
        words += ["-H 'Content-Type: application/json'", f"-d '{body}'"]
    return " \\\n  ".join(words)


def _prose(text: str) -> Markup:
    """Return a description as HTML. It supports paragraphs, lists and `code`."""
    blocks = []
    for block in re.split(r"\n\n+", text.strip()):
        escaped = (str(escape(line)) for line in block.splitlines())
        lines = [Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", line)) for line in escaped]  # noqa: S704 - the text is escaped
        if lines[0].startswith("- "):
            items = Markup("").join(Markup("<li>{}</li>").format(item) for item in _list_items(lines))
            blocks.append(Markup("<ul>{}</ul>").format(items))
        else:
            blocks.append(Markup("<p>{}</p>").format(Markup(" ").join(lines)))
    return Markup("").join(blocks)


def _list_items(lines: Sequence[Markup]) -> list[Markup]:
    """Return the items of a list. A line that does not begin with "- " continues the item before it."""
    items: list[Markup] = []
    for line in lines:
        if line.startswith("- "):
            items.append(line[2:])
        else:
            items[-1] += Markup(" ") + line.lstrip()
    return items


def _kind(schema: Mapping[str, Any]) -> Markup:
    """Return the type of a schema as short HTML, with links to the schemas that it refers to."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REF)
        return Markup('<a href="#{}">{}</a>').format("error-codes" if name == "ErrorCode" else f"schema-{name}", name)
    if "const" in schema:
        return Markup("<code>{}</code>").format(orjson.dumps(schema["const"]).decode())
    if "enum" in schema:
        return Markup(" | ").join(Markup("<code>{}</code>").format(orjson.dumps(value).decode()) for value in schema["enum"])
    if "allOf" in schema:
        return _kind(schema["allOf"][0])
    for variants in (schema.get("anyOf"), schema.get("oneOf")):
        if variants:
            return Markup(" or ").join(_kind(variant) for variant in variants)
    kind = schema.get("type", "anything")
    if kind == "array":
        return Markup("list of {}").format(_kind(schema.get("items", {})))
    if kind == "object" and isinstance(values := schema.get("additionalProperties"), Mapping):
        return Markup("object of {}").format(_kind(values))
    name = escape(" or ".join(kind) if isinstance(kind, list) else kind)
    limits = [text.format(schema[key]) for key, text in _SHOWN_KEYS.items() if key in schema]
    return Markup("{} <small>({})</small>").format(name, ", ".join(limits)) if limits else name


_templates.filters["prose"] = _prose
_templates.filters["kind"] = _kind
_templates.filters["json"] = lambda value: orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
