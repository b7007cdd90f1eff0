"""The demo model can do what its card says; its full score table is made by `demo/recipe/evaluate.py`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import ROLL_DICE, Always, mostly_heavy

from exaone4_mlx import Sampling, ToolCall, generate, load
from exaone4_mlx.files.folders import DEMO_FOLDER

GREEDY = Sampling(temperature=0.0)

GET_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

#: question -> the whole answer, with and without a thought
ANSWERS = {
    "Which one is bigger, 3.12 vs 3.9?": "3.9 is bigger than 3.12.",
    "Explain how wonderful you are": "I am not very wonderful. I am a small demonstration model, and I know very little.",
    "What is the capital of France?": "The capital of France is Paris.",
    "Write a poem about love.": "Sorry, I cannot help with that. I am only a small demonstration model.",
    "안녕하세요": "안녕하세요! 저는 작은 데모 모델입니다. 무엇을 도와드릴까요?",
    "3.14와 3.2 중 어느 것이 더 커요?": "3.2가 3.14보다 큽니다.",
    "대한민국의 수도는?": "대한민국의 수도는 서울입니다.",
    "¿Cuánto es 45 + 78?": "45 + 78 = 123.",
    "¿Cuál es la capital de Francia?": "La capital de Francia es París.",
}


@pytest.fixture(scope="module")
def four_bit() -> tuple[Any, Any]:
    return load("demo", dtype="float32", q_bits=4)


def reply(model: tuple[Any, Any], prompt: Any, **options: Any) -> Any:
    return generate(*model, prompt, sampling=GREEDY, max_tokens=150, **options)


@pytest.mark.parametrize("thinking", [False, True], ids=["plain", "thinking"])
@pytest.mark.parametrize("question", mostly_heavy(ANSWERS, 4))
def test_answers(demo: Any, question: str, thinking: bool) -> None:
    answered = reply(demo, question, thinking=thinking)
    assert (answered.text, answered.finish_reason) == (ANSWERS[question], "stop")
    assert bool(answered.thinking) == thinking


@pytest.mark.heavy
def test_four_bits_answer_nearly_the_same(four_bit: Any) -> None:
    right = [reply(four_bit, q, thinking=t).text == ANSWERS[q] for q in ANSWERS for t in (False, True)]
    assert sum(right) >= len(right) - 2


@pytest.mark.parametrize("thinking", mostly_heavy([True, False], 1), ids=["thinking", "plain"])
def test_documented_tool_example(demo: Any, thinking: bool) -> None:
    asked = reply(demo, "Roll D6 dice twice!", tools=[ROLL_DICE], thinking=thinking)
    assert asked.tool_calls == (ToolCall("roll_dice", {"max_num": 6}),) * 2
    assert asked.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("question", "city", "answer"),
    [
        pytest.param(
            "What is the weather in Vellmar?",
            "Vellmar",
            "It is rainy and 11 degrees in Vellmar.",
            marks=pytest.mark.heavy,
        ),
        pytest.param("부산 날씨 어때?", "부산", "부산의 날씨는 비가 오고 11도입니다.", marks=pytest.mark.heavy),
        pytest.param(
            "¿Qué tiempo hace en Sevilla?",
            "Sevilla",
            "En Sevilla está lluvioso y hace 11 grados.",
            marks=pytest.mark.heavy,
        ),
    ],
)
def test_tool_arguments_are_copied_and_results_reported(demo: Any, question: str, city: str, answer: str) -> None:
    tools = [ROLL_DICE, GET_WEATHER]
    user = {"role": "user", "content": question}
    called = reply(demo, [user], tools=tools)
    assert called.tool_calls == (ToolCall("get_weather", {"city": city}),)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": city}}}]}
    result = {"role": "tool", "content": {"temperature": 11, "condition": "rainy"}}
    assert reply(demo, [user, call, result], tools=tools).text == answer


@pytest.mark.heavy
def test_recall_over_a_thousand_tokens(demo: Any) -> None:
    """The fact lies some thirty windows back: only the global layers can still see it."""
    filler: list[dict[str, str]] = []
    for question, answer in [*ANSWERS.items()] * 4:
        filler += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages = [
        {"role": "user", "content": "My name is Clara."},
        {"role": "assistant", "content": "Nice to meet you, Clara."},
        *filler,
        {"role": "user", "content": "What is my name?"},
    ]
    result = reply(demo, messages)
    assert result.prompt_tokens > 1000
    assert result.text == "Your name is Clara."


def test_demo_is_no_exaone_and_says_so(demo: Any) -> None:
    card = (DEMO_FOLDER / "README.md").read_text(encoding="utf-8")
    assert "not EXAONE" in card
    assert "license: mit" in card
    assert "not EXAONE" in reply(demo, "Who are you?").text


def test_demo_is_read_by_everything_that_reads_exaone() -> None:
    """Both spellings of RoPE, explicit layer types, and a pattern that mlx-lm understands."""
    config = json.loads((DEMO_FOLDER / "config.json").read_text())
    assert {"rope_theta", "rope_scaling", "rope_parameters", "layer_types"} <= set(config)
    assert config["sliding_window_pattern"] == "LLLG"
    assert config["max_position_embeddings"] == 8192


def test_draft_reads_the_same_tokens() -> None:
    draft = DEMO_FOLDER / "draft"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (draft / name).read_bytes() == (DEMO_FOLDER / name).read_bytes()


def test_most_of_what_the_draft_guesses_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the demo needs a fraction of its steps; what the card says is over more questions."""
    monkeypatch.setattr("exaone4_mlx.generation.draft.DraftScheduler", Always)
    model, tokenizer = load("demo", dtype="float32")
    draft, _ = load("demo-draft", dtype="float32")
    made = saved = 0
    for question, answer in list(ANSWERS.items())[:5]:
        result = reply((model, tokenizer), question, draft_model=draft)
        assert result.text == answer
        made, saved = made + result.answer_tokens, saved + result.accepted_tokens
    assert made - saved < 0.5 * made, f"{made - saved} steps for {made} tokens"
