"""Addresses of web pages in a model's Markdown become links: `https://example.com에서` is a link and a particle.

Notes:
- The schemes are http and https. A host is ASCII, and one with a user name before it (`@`) is none.
- Korean attaches particles to the address. Letters that are not ASCII are part of it only after one of `/ = - _ &`, and
  without their particle: `https://ko.wikipedia.org/wiki/서울에서` is the page of 서울.
- Marks at the end belong to the sentence, and so does a bracket that is not opened in the address.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it.rules_inline import StateInline

SCHEME = re.compile(r"(?<![A-Za-z0-9])https?$", re.IGNORECASE)
HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::\d{1,5})?"
PATH = r"(?:[A-Za-z0-9/?#=&%+~@!$,.:;'()\[\]_-]|(?<=[/=&_-])[^\W\x00-\x7f]{1,200}){0,3000}"
ADDRESS = re.compile(rf"://(?![^\s/?#]*@){HOST}(?![A-Za-z0-9])(?:[/?#]{PATH})?")
LONGEST = 2048  # characters of an address
#: Particles at the end of a word that is not ASCII. One of a single letter is one only where it is the whole word.
PARTICLE = re.compile(
    r"(?:(?<=[/=&_-])(?:은|는|이|가|을|를|의|에|와|과|로|도|만)|에서[는도]?|에[는도]|으로|까지|부터|입니다|이다|이고|이며|이나|라는|라고)$"
)
BRACKETS = {")": "(", "]": "["}


def address_link(state: StateInline, silent: bool) -> bool:
    """A rule of markdown-it: an address outside of links and code is a link. It begins at the colon."""
    begun = SCHEME.search(state.src, max(0, state.pos - 6), state.pos) if state.src[state.pos] == ":" else None
    found = ADDRESS.match(state.src, state.pos, state.posMax) if begun and not state.linkLevel else None
    if begun is None or found is None or len(found[0]) > LONGEST:
        return False
    scheme, address = begun[0], begun[0] + _trimmed(found[0])
    href = state.md.normalizeLink(address)
    if not state.md.validateLink(href):
        return False
    if not silent:
        state.pending = state.pending[: -len(scheme)]
        state.push("link_open", "a", 1).attrs = {"href": href}
        state.push("text", "", 0).content = address
        state.push("link_close", "a", -1)
    state.pos += len(address) - len(scheme)
    return True


def _trimmed(address: str) -> str:
    """The address without what belongs to the sentence."""
    while True:
        particle = PARTICLE.search(address, len(address) - 5)
        end = address[: particle and particle.start()].rstrip(".,:;!?'_~")
        if (opening := BRACKETS.get(end[-1])) and end.count(end[-1]) > end.count(opening):
            end = end[:-1]
        if end == address:
            return end
        address = end
