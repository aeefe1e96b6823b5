"""This module renders the OpenAPI document as one HTML page that loads nothing from other hosts.

The page is complete without its script, which adds the search and the forms that send a request. The Content-Security-Policy
permits only this script and this style sheet, by their hashes, and only connections to this service.
"""
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
_script = Markup(_templates.get_template("docs.js").render())  # noqa: S704 - a file of this package


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src {_hash(_style)}; script-src {_hash(_script)}; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def page(document: Mapping[str, Any]) -> bytes:
    """Return the HTML page of an OpenAPI document, encoded in UTF-8."""
    schemas = document["components"]["schemas"]
    operations = list(_operations(document))
    rendered = _templates.get_template("docs.html").render(
        document=document,
        style=_style,
        script=_script,
        webhooks=[(name, methods["post"]) for name, methods in document["webhooks"].items()],
        tags=[(name, found) for name, found in _by_tag(document, operations) if found],
        schemas={name: schema for name, schema in schemas.items() if name != "ErrorCode"},
        error_codes=[(code.name, code.http_status, code.meaning) for code in ErrorCode],
        security_schemes=document["components"]["securitySchemes"],
    )
    return rendered.encode()


def _by_tag(document: Mapping[str, Any], operations: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for tag in document["tags"]:
        yield tag["name"], [one for one in operations if tag["name"] in one["tags"]]


def _operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            located = {**operation, "method": method.upper(), "path": path}
            words = (
                method,
                path,
                operation["operationId"],
                operation["summary"],
                *operation["tags"],
                operation.get("description", ""),
            )
            schemes = [name for choice in operation["security"] for name in choice]
            credential = "key" if "ApiKey" in schemes else "token" if "TrackerToken" in schemes else ""
            yield {**located, "curl": _curl(located), "search": " ".join(words), "credential": credential}


#: The path parameters whose values the service generates. In examples, a shell variable replaces each of them, because the values
#: are different in each installation.
GENERATED_PARAMETERS = frozenset(
    {
        "tracker_id",
        "delivery_id",
        "event_id",
        "update_id",
        "key_id",
        "api_key_id",
        "code",
        "postback_key",
        "processKey",
        "gateway_id",
    }
)


def variable_of(parameter: str) -> str:
    """Return the name of the shell variable for a path parameter, for example PROCESS_KEY for processKey."""
    return re.sub(r"(?<=[a-z])([A-Z])", r"_\1", parameter).upper()


def _curl(operation: Mapping[str, Any]) -> str:
    """Return an example call of an endpoint as a curl command. Return "" for an endpoint that only gateways call, because each
    gateway sends its own format.

    The command uses the shell variables BASE, KEY and TOKEN, and one variable for each generated id in the path."""
    path = operation["path"]
    if "{report_key}" in path:
        return ""
    query = []
    for parameter in operation.get("parameters", ()):
        name = parameter["name"]
        if parameter["in"] == "path":
            is_variable = name in GENERATED_PARAMETERS or "example" not in parameter
            value = f"${variable_of(name)}" if is_variable else quote(str(parameter["example"]), safe="")
            path = path.replace(f"{{{name}}}", value)
        elif parameter["in"] == "query" and (
            parameter.get("required") or (name in ("message_id", "action") and "/sms/" not in path)
        ):
            query.append(f"{name}={quote(str(parameter.get('example', '')), safe='')}")
    path += "?" + "&".join(query) if query and not operation.get("requestBody") else ""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    method = operation["method"]
    url = f'"$BASE{path}"'
    words = [f"curl -s {url}" if method == ("POST" if content else "GET") else f"curl -s -X {method} {url}"]
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
    """Return the items of a list. A line without "- " at its beginning continues the previous item."""
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
