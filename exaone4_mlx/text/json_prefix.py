"""A reader that knows whether a growing text is still the beginning of one JSON value."""

from __future__ import annotations

import re

_WORDS = r"t(r(ue?)?)?|f(a(l(se?)?)?)?|n(u(ll?)?)?"
_LITERAL_START = re.compile(rf"-?((0|[1-9]\d*)(\.|(\.\d+)?([eE][+-]?\d*)?)?)?|{_WORDS}")
_LITERAL = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?|true|false|null")


class JsonPrefix:
    """Reads each character once. `valid` and `in_string` describe the text so far."""

    def __init__(self) -> None:
        self.valid = True
        self.in_string = False
        self._escape = 0  # 5 after a backslash, then the number of hexadecimal digits to read
        self._stack: list[str] = []  # open brackets
        self._expect = "value"  # or: "key", "colon", "comma", "first key", "first value", "end"
        self._literal = ""  # a number or a word so far
        self._string_is_key = False

    def feed(self, text: str) -> None:
        for character in text:
            if not self.valid:
                return
            self.valid = self._read_in_string(character) if self.in_string else self._read_outside(character)

    def _read_in_string(self, character: str) -> bool:
        if self._escape:
            first, self._escape = self._escape == 5, self._escape - 1
            if first:
                self._escape = 4 if character == "u" else 0
                return character in '"\\/bfnrtu'
            return character in "0123456789abcdefABCDEF"
        if character == "\\":
            self._escape = 5
        elif character == '"':
            self.in_string = False
            self._expect = "colon" if self._string_is_key else self._after_value()
        return True

    def _read_outside(self, character: str) -> bool:
        if self._literal:
            if character not in ',]} \t\r\n:"[{':
                self._literal += character
                return _LITERAL_START.fullmatch(self._literal) is not None
            if not _LITERAL.fullmatch(self._literal):
                return False
            self._literal, self._expect = "", self._after_value()
        if character in " \t\r\n":
            return True
        expect = self._expect
        if character == '"' and expect not in ("colon", "comma", "end"):
            self.in_string, self._string_is_key = True, expect.endswith("key")
            return True
        if character in "{[" and expect.endswith("value"):
            self._stack.append(character)
            self._expect = "first key" if character == "{" else "first value"
            return True
        if character in "}]" and self._stack and self._stack[-1] == "{["[character == "]"]:
            closes = expect == "comma" or expect == ("first key" if character == "}" else "first value")
            self._stack.pop()
            self._expect = self._after_value()
            return closes
        if character == ":" and expect == "colon":
            self._expect = "value"
            return True
        if character == "," and expect == "comma":
            self._expect = "key" if self._stack[-1] == "{" else "value"
            return True
        if expect.endswith("value") and character in "-0123456789tfn":
            self._literal = character
            return True
        return False

    def _after_value(self) -> str:
        return "comma" if self._stack else "end"
