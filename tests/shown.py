"""What tests of views share: a parsed page, a reply and a conversion."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from exaone4_mlx import ConversionSummary
from exaone4_mlx.text.message import Reply
from exaone4_mlx.tools.call import ToolCall

COUNTS = {
    "prompt_tokens": 24,
    "cached_tokens": 3,
    "thinking_tokens": 23,
    "answer_tokens": 14,
    "prefill_seconds": 0.05,
    "decode_seconds": 2.0,
    "thinking_seconds": 1.25,
    "peak_bytes": 12_000_000,
}


def reply(text: str = "x", thinking: str = "", calls: tuple[ToolCall, ...] = (), **changes: Any) -> Reply:
    return Reply(text, thinking, calls, **({"finish_reason": "stop"} | COUNTS | changes))


def summary(**changes: Any) -> ConversionSummary:
    made: dict[str, Any] = {
        "path": Path("there"),
        "parameters": 1_234,
        "source_bytes": 4_000_000,
        "bytes": 1_000_000,
        "bits_per_weight": 4.5,
        "seconds": 3.0,
        "peak_bytes": 5_000_000,
    }
    return ConversionSummary(**(made | changes))


#: Korean Markdown that parsers get wrong: tildes, particles, tags, products, a table, code and formulas.
TORTURE = r"""### 물결표와 조사

회의는 3~5시, 7~9시이고 10~20명이 3~4시간 걸립니다. 안녕~~ 반가워~~! ~~취소~~는 됩니다.
**엑사원(EXAONE)**은 **"중요"**합니다. 값은 **100%**입니다. *가(나)*은, ***전부(all)***를, **`코드`**는.

1. **[링크](https://ko.wikipedia.org/wiki/한국)**를 보세요.
2. 2*3*4 = 24, 가로*세로*높이, x**2 + y**2, **넓이 = 가로*세로**
   - List<String>, <div class="a">본문</div>, <details> &lt; &nbsp;

| 항목 | 값 |
|---|---:|
| **온도(℃)**는 | 3~5 |
| `~ **a)**은` | $x_1*y_1$ |

> 인용 **"안"**에서도 3~5, 7~9.

```python
def f(x):  # 3~5 **가(나)**은
    return x ** 2 if x < 3 else "<b>"
```

수식 \(a_1*b_1\)은 $$\sum_{i=1}^{n} x_i^2 \ne 3~5$$ 그리고 __init__은, snake_case는.
"""


class Page(HTMLParser):
    """The tags of a page with the names of their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}",))

    def handle_data(self, data: str) -> None:
        self.text += data
