"""A reader that knows whether a growing text is still the beginning of one JSON value."""

from __future__ import annotations

#: The states of a literal, by the character that comes. For a number: "-", "0", "1" (an integer), ".", "d" (decimals),
#: "e", "+" (the sign of an exponent) and "x" (an exponent). For a word: its text so far.
_INTEGER = {"0": "0"} | dict.fromkeys("123456789", "1")
_NEXT: dict[str, dict[str, str]] = {
    "": {"-": "-", **_INTEGER},
    "-": _INTEGER,
    "0": {".": ".", "e": "e", "E": "e"},
    "1": dict.fromkeys("0123456789", "1") | {".": ".", "e": "e", "E": "e"},
    ".": dict.fromkeys("0123456789", "d"),
    "d": dict.fromkeys("0123456789", "d") | {"e": "e", "E": "e"},
    "e": dict.fromkeys("0123456789", "x") | {"+": "+", "-": "+"},
    "+": dict.fromkeys("0123456789", "x"),
    "x": dict.fromkeys("0123456789", "x"),
}
for _word in ("true", "false", "null"):
    for _end in range(len(_word)):
        _NEXT.setdefault(_word[:_end], {})[_word[_end]] = _word[: _end + 1]
_WHOLE = {"0", "1", "d", "x", "true", "false", "null"}


class JsonPrefix:
    """Reads each character once. `valid` and `in_string` describe the text so far; `length` characters are valid."""

    def __init__(self) -> None:
        self.valid = True
        self.length = 0
        self.in_string = False
        self._escape = 0  # 5 after a backslash, then the number of hexadecimal digits to read
        self._stack: list[str] = []  # open brackets
        self._expect = "value"  # or: "key", "colon", "comma", "first key", "first value", "end"
        self._literal = ""  # the state of a number or a word
        self._string_is_key = False

    def feed(self, text: str) -> None:
        for character in text:
            if not self.valid:
                return
            self.valid = self._read_in_string(character) if self.in_string else self._read_outside(character)
            self.length += self.valid

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
                self._literal = _NEXT.get(self._literal, {}).get(character, "")
                return bool(self._literal)
            if self._literal not in _WHOLE:
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
        if expect.endswith("value") and character in _NEXT[""]:
            self._literal = _NEXT[""][character]
            return True
        return False

    def _after_value(self) -> str:
        return "comma" if self._stack else "end"
