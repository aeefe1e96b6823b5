"""Rules that decide whether a text such as `shop.info` is a domain, or two words with a full stop but no space between them.

The rule depends on the public suffix (ICANN) of the text:

a. A generic suffix that is not a word is always a domain (`.com`, `.org`, `.co.uk`, `.com.au`: _GENERIC, _SECOND_LEVEL).
b. A suffix that is rarely the first word of a sentence (`.de`, `.fr`, `.ru`, `.app`: _COUNTRIES, _UNAMBIGUOUS) requires a name of
   at least three characters, and a suffix in lower case.
c. A suffix that is a noun (`.shop`, `.online`, `.info`, `.example`: _NOUNS) requires the conditions of rule b and one of these:
   - A word such as "visit" or "at" precedes the domain.
   - No word in lower case follows the domain.
   - The name contains a digit, a hyphen or a capital letter.
d. A country suffix that is also a frequent word (`.es`, `.it`, `.me`: _WORDS) requires a name of at least three characters, and a
   word such as "visit" or a colon before the domain. A word such as "at", or a name as in rule c, is sufficient if no word in lower
   case follows the domain.
e. Every other suffix (`.so`, `.how`, `.love`, ...) requires a path, as in `now.so/shop`. A path is also sufficient for the
   suffixes of the rules b to d: `t.me/shop`.

In the rules b to e, a capital letter in the suffix (`Yes.No/maybe`, `hi.How`) means that a sentence starts there, so the text is
not a domain. The exception is a host that is completely in capitals and has a path. In rule a, except for `.net`, a capitalised
suffix is accepted after a name of at least three characters, because phones write `Yahoo.Com`. In the SMS Spam Collection (5,574
texts), no full stop is directly followed by a suffix of the rules b or c. Therefore these rules require no path.
"""
# Tested by tests/messages/test_url_detection.py

from __future__ import annotations

import re
from functools import cache

from publicsuffixlist import PublicSuffixList


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GENERIC = frozenset(["com", "net", "org", "edu", "gov", "mil", "biz", "mobi", "xyz"])
_CAPITALISED = _GENERIC - {"net"}  # ".Net" is not accepted with a capital letter, because "Net" is also the first word of sentences
_SECOND_LEVEL = frozenset(["ac", "co", "com", "edu", "gob", "gov", "gouv", "ltd", "net", "nhs", "org", "plc"])
_COUNTRIES = _words(
    "ae ar bd bg br cc ch cl cn cz de dk dz ee fi fm fr gg gh gr gt hk hr hu ie jp ke kg kr kw kz lb lk lt lu lv ly "
    "mk mn mx nl np nz pk pl pt qa ro ru sg sk sv tn tr tv tw tz ua ug uk uy uz vg vn ws za zm zw рф укр бел "
    "срб қаз мон бг"
)
_UNAMBIGUOUS = _words("app asia bio dev eus onl москва рус онлайн сайт дети")
_NOUNS = _words(
    "academy agency ai auto bank beauty berlin bet bike blog boutique cafe cars casino center clinic cloud club co company "
    "coupons dental digital discount eco education email events example express fashion finance fitness fund games gift gifts "
    "golf group hamburg health hotel hotels info insurance io legal link loans london market marketing media menu nyc online "
    "page paris pet photo photos pizza poker pro restaurant salon school services shop shopping site software solutions store "
    "studio support systems taxi tech technology tickets tokyo tours training travel ventures video vip website wien wiki "
    "yoga"
)
_WORDS = _words("al am as at au az ba be by ca ec eg es eu ge id im in is it je jo la li ma me mt my ng ni no pe sa se si to us")
_MAX_NOUN_LABELS = 3

# Words in a dozen languages that often precede the name of a web site. A word in _STRONG rarely precedes anything else.
_STRONG = (
    "visit|visite|visitez|visita|visiting|besuche|besuchen|bezoek|besök|besøg|besøk|odwiedź|kunjungi|ziyaret|acesse|accedi|via|web|"
    "website|webseite|sitio|site|sito|link|url|homepage|online at|order at|book at|shop at|more at|info at|go to|log in at|"
    "login at|entra en|vai su|mehr auf|mehr unter|kijk op|wejdź na|сайт|на сайте|download|app"
)
_WEAK = "at|on|from|see|check|click|to|auf|unter|bei|sur|chez|en|su|da|em|na|no|op|bij|på|hos|di|w|на|в"
_AFTER_STRONG = re.compile(rf"(?:(?:\b(?:{_STRONG}))[ \t]*|[:→➡👉👇➜»›|•]\ufe0f?[ \t]*|(?:^|\n)[ \t]*)$", re.IGNORECASE)
_AFTER_WEAK = re.compile(rf"\b(?:{_WEAK})[ \t]+$", re.IGNORECASE)
_GOES_ON = re.compile(r"(?:[ \t]+|['’])[^\W\d_]")
_MAX_CONTEXT_CHARACTERS = 24


def is_bare_domain(body: str, start: int, end: int, host: str, rest: str) -> bool | None:
    """Return whether `body[start:end]` is a URL without a scheme. `host` is its host; `rest` is its port, path and query. Return
    None if the text can be a domain or two words. In this case only the sender can decide."""
    suffix = public_suffix(host)
    if suffix is None:
        return False
    if host[:4].lower() == "www.":
        return len(host) > len("www.") + len(suffix) or "." in suffix
    name, _, top = host.rpartition(".")
    if suffix == host.lower():
        suffix = top.lower()  # the host is itself a suffix, for example gov.uk, which is also a web site
    else:
        name = host[: -len(suffix) - 1]
    name = name.rpartition(".")[2]
    second, _, country = suffix.partition(".")
    is_lower = top.islower() or (host.isupper() and "/" in rest)
    if suffix in _GENERIC or (country and second in _SECOND_LEVEL):
        return is_lower or host.isupper() or (len(name) >= 3 and bool(country or suffix in _CAPITALISED))
    if not is_lower:
        return False
    if len(rest) > 1 and rest[0] == "/" and not name.isdigit():
        return True
    if len(name) < 3 or name.isdigit():
        return False
    if suffix in _COUNTRIES or suffix in _UNAMBIGUOUS:
        return True
    return _is_domain_in_context(body, start, end, host, name, suffix)


def public_suffix(host: str) -> str | None:
    """Return the public suffix of a host from the ICANN section of the Public Suffix List, in lower case; None if it has none.

    The list does not contain `.example`, the domain of documents and tests (RFC 2606). This function treats it as a suffix."""
    suffix: str | None = _public_suffixes().publicsuffix(host)
    if suffix is None and host[-8:].lower() == ".example":
        return "example"
    return suffix


def _is_domain_in_context(body: str, start: int, end: int, host: str, name: str, suffix: str) -> bool | None:
    is_noun = suffix in _NOUNS
    if not is_noun and suffix not in _WORDS:
        return False
    if host.count(".") >= _MAX_NOUN_LABELS:
        return False
    before = body[max(start - _MAX_CONTEXT_CHARACTERS, 0) : start]
    is_strong = bool(before.strip()) and _AFTER_STRONG.search(before) is not None
    is_introduced = is_strong or _AFTER_WEAK.search(before) is not None
    goes_on = _GOES_ON.match(body, end) is not None and body[end:].lstrip(" \t'’")[:1].islower()
    is_distinctive = any(character.isdigit() or character == "-" or character.isupper() for character in name)
    if is_noun:
        if is_introduced or is_distinctive or not goes_on:
            return True
        return None
    if is_strong or ((is_introduced or is_distinctive) and not goes_on):
        return True
    return None if is_introduced or is_distinctive else False


@cache
def _public_suffixes() -> PublicSuffixList:
    return PublicSuffixList(only_icann=True, accept_unknown=False)
