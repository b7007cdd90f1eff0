"""Arguments of a call and a JSON schema -> the errors, within a limit of time.

Notes:
- Neither the schema nor the arguments are trusted. `allOf` in `allOf`, `anyOf` and `$ref` can take time
  that grows exponentially, so the time is read at each keyword.
- The search of a pattern can take years, and no thread can end it. It runs in a child process.
- jsonschema compares each two items for `uniqueItems`. Here each item is read once.
"""

from __future__ import annotations

import itertools
import json
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

CHECK_SECONDS = 2.0
MAX_ERRORS = 100
SEARCHES = "import json, re, sys\nfor line in sys.stdin: print(int(bool(re.search(*json.loads(line)))), flush=True)"


def argument_errors(schema: Mapping[str, Any], value: Any, seconds: float = CHECK_SECONDS) -> list[Any]:
    """The first errors of jsonschema. Raises TimeoutError after `seconds`, and what jsonschema raises."""
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
    from jsonschema.validators import extend  # type: ignore[import-untyped]
    from referencing import Registry

    patterns = Patterns(time.monotonic() + seconds)

    def timed(keyword: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            patterns.check_time()
            return keyword(*given)

        return run

    own = {
        "additionalProperties": patterns.additional_properties,
        "pattern": patterns.pattern,
        "patternProperties": patterns.pattern_properties,
        "uniqueItems": _unique_items,
    }
    keywords = {name: timed(keyword) for name, keyword in {**Draft202012Validator.VALIDATORS, **own}.items()}
    # With an empty registry, jsonschema does not download what a `$ref` names.
    validator = extend(Draft202012Validator, keywords)(schema, registry=Registry())
    try:
        return list(itertools.islice(validator.iter_errors(value), MAX_ERRORS))
    finally:
        patterns.close()


class Patterns:
    """The keywords with regular expressions. A child process searches, up to the time `end`."""

    def __init__(self, end: float) -> None:
        self._end = end
        self._child: subprocess.Popen[bytes] | None = None

    def check_time(self) -> float:
        """The seconds that are left. Raises TimeoutError if there are none."""
        if (left := self._end - time.monotonic()) <= 0:
            raise TimeoutError
        return left

    def search(self, pattern: str, text: str) -> bool:
        if not re.search(r"\(|[*+?{].*[*+?{]", pattern, re.DOTALL) and len(text) < 1000:  # it cannot take long
            return re.search(pattern, text) is not None
        if self._child is None:
            command = [sys.executable, "-I", "-S", "-c", SEARCHES]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps([pattern, text]).encode() + b"\n")
        self._child.stdin.flush()
        while not select.select([self._child.stdout], [], [], self.check_time())[0]:
            pass
        return self._child.stdout.readline() == b"1\n"

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()

    def pattern(self, validator: Any, pattern: str, value: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
        from jsonschema import ValidationError

        if isinstance(value, str) and not self.search(pattern, value):
            yield ValidationError(f"{value!r} does not match {pattern!r}")

    def pattern_properties(self, validator: Any, table: Any, value: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
        for pattern, below in table.items() if isinstance(value, dict) else ():
            for name in value:
                if self.search(pattern, name):
                    yield from validator.descend(value[name], below, path=name, schema_path=pattern)

    def additional_properties(self, validator: Any, below: Any, value: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
        """Those that no pattern matches, as jsonschema checks them."""
        from jsonschema import Draft202012Validator

        if isinstance(value, dict) and (patterns := schema.get("patternProperties")):
            value = {name: one for name, one in value.items() if not any(self.search(one, name) for one in patterns)}
            schema = {name: one for name, one in schema.items() if name != "patternProperties"}
        yield from Draft202012Validator.VALIDATORS["additionalProperties"](validator, below, value, schema) or ()


def _unique_items(validator: Any, unique: bool, value: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    from jsonschema import ValidationError

    if unique and isinstance(value, list):
        seen = set()
        for item in map(_hashable, value):
            if item in seen:
                yield ValidationError("the items must differ from each other")
                return
            seen.add(item)


def _hashable(value: Any) -> Any:
    """Equal for values that JSON Schema counts as equal: 1 and 1.0, and not 1 and true."""
    if isinstance(value, list):
        return ("list", tuple(map(_hashable, value)))
    if isinstance(value, dict):
        return ("object", frozenset((name, _hashable(one)) for name, one in value.items()))
    return (isinstance(value, bool), value)
