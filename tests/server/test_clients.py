"""Real clients against the server: openai, anthropic, langchain-openai, litellm and instructor."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from conftest import ROLL_DICE

pytestmark = pytest.mark.heavy

QUESTION = [{"role": "user", "content": "Which one is bigger, 3.12 vs 3.9?"}]
COLD = {"temperature": 0}
THOUGHT, ANSWER = "Integer parts 3 and 3: =. Decimals 12 and 90: <.", "3.9 is bigger than 3.12."


@pytest.fixture
def openai(served: Any) -> Any:
    module = pytest.importorskip("openai")
    return module.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def anthropic(served: Any) -> Any:
    module = pytest.importorskip("anthropic")
    return module.Anthropic(base_url=served.url, api_key="none", max_retries=0)


# --- openai ---------------------------------------------------------------------------------------------------


def test_openai_chat(openai: Any) -> None:
    answer = openai.chat.completions.create(
        model="gpt-4o", messages=QUESTION, temperature=0, extra_body={"enable_thinking": True}
    )
    (choice,) = answer.choices
    assert choice.message.content.strip() == ANSWER
    assert choice.message.reasoning_content.strip() == choice.message.reasoning.strip() == THOUGHT
    assert choice.finish_reason == "stop" and answer.model == "demo"
    assert answer.usage.completion_tokens_details.reasoning_tokens > 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert openai.models.list().data[0].id == openai.models.retrieve("anything").id == "demo"


def test_openai_stream_is_the_whole_answer(openai: Any) -> None:
    stream = openai.chat.completions.create(
        model="demo",
        messages=QUESTION,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        reasoning_effort="high",
    )
    chunks = list(stream)
    roles = [chunk.choices[0].delta.role for chunk in chunks if chunk.choices]
    assert roles[0] == "assistant" and not any(roles[1:])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    thought = "".join(getattr(chunk.choices[0].delta, "reasoning", "") or "" for chunk in chunks if chunk.choices)
    assert (text.strip(), thought.strip()) == (ANSWER, THOUGHT)
    assert not chunks[-1].choices and chunks[-1].usage.completion_tokens > 20
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_openai_tools_round_trip(openai: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": "Roll D6 dice twice!"}]
    answer = openai.chat.completions.create(model="demo", messages=messages, tools=[ROLL_DICE], temperature=0)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [{"max_num": 6}] * 2
    messages.append(message)
    for call, number in reversed(list(zip(message.tool_calls, (2, 5), strict=True))):  # in another order
        messages.append({"role": "tool", "tool_call_id": call.id, "content": str(number)})
    final = openai.chat.completions.create(model="demo", messages=messages, tools=[ROLL_DICE], temperature=0)
    assert final.choices[0].message.content.strip() == "You rolled 2 and 5."
    assert final.usage.prompt_tokens_details.cached_tokens >= 283


def test_openai_streams_calls(openai: Any) -> None:
    with openai.chat.completions.stream(
        model="demo", messages=[{"role": "user", "content": "Roll D6 dice twice!"}], tools=[ROLL_DICE], temperature=0
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["roll_dice", "roll_dice"]
    assert len({call.id for call in message.tool_calls}) == 2


@pytest.mark.parametrize("choice", ["none", "required", {"type": "function", "function": {"name": "roll_dice"}}])
def test_openai_tool_choice(openai: Any, choice: Any) -> None:
    pytest.importorskip("llguidance")
    answer = openai.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Hello"}],
        tools=[ROLL_DICE],
        tool_choice=choice,
        temperature=0,
        max_tokens=60,
        parallel_tool_calls=False,
    )
    calls = answer.choices[0].message.tool_calls or []
    assert len(calls) == (choice != "none")
    assert all(isinstance(json.loads(call.function.arguments)["max_num"], int) for call in calls)


def test_openai_schema_as_a_pydantic_model(openai: Any) -> None:
    pytest.importorskip("llguidance")
    from pydantic import BaseModel

    class Answer(BaseModel):
        bigger: Literal["3.12", "3.9"]
        sure: bool

    answer = openai.chat.completions.parse(
        model="demo", messages=QUESTION, response_format=Answer, temperature=0, extra_body={"enable_thinking": True}
    )
    assert isinstance(answer.choices[0].message.parsed, Answer)


def test_openai_logprobs_n_seed_and_stop(openai: Any) -> None:
    answer = openai.chat.completions.create(
        model="demo", messages=QUESTION, logprobs=True, top_logprobs=3, temperature=0
    )
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob >= token.logprob for token in tokens)
    assert bytes(byte for token in tokens for byte in token.bytes).decode() == answer.choices[0].message.content
    drawn = [
        openai.chat.completions.create(model="demo", messages=QUESTION, n=3, seed=4, temperature=3, max_tokens=12)
        for _ in range(2)
    ]
    texts = [[choice.message.content for choice in one.choices] for one in drawn]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1
    stopped = openai.chat.completions.create(model="demo", messages=QUESTION, stop=["than"], temperature=0)
    assert stopped.choices[0].message.content == ANSWER.partition("than")[0]


def test_openai_continues_a_last_message(openai: Any) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "3.9 is"}]
    answer = openai.chat.completions.create(model="demo", messages=messages, temperature=0)
    assert answer.choices[0].message.content == ANSWER.removeprefix("3.9 is")
    response = openai.responses.create(model="demo", input=messages, temperature=0)
    assert response.output_text == ANSWER.removeprefix("3.9 is")


def test_openai_completions(openai: Any) -> None:
    answer = openai.completions.create(model="demo", prompt=["Hello", "One"], max_tokens=5, temperature=0, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    whole = answer.choices[0]
    tokens, offsets = whole.logprobs.tokens, whole.logprobs.text_offset
    assert len(tokens) == 5 and all(whole.text.startswith(*one) for one in zip(tokens, offsets, strict=True))
    stream = openai.completions.create(
        model="demo", prompt="Hello", max_tokens=5, temperature=0, logprobs=2, stream=True
    )
    chunks = [chunk.choices[0] for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [at for chunk in chunks for at in chunk.logprobs.text_offset] == whole.logprobs.text_offset


def test_openai_responses(openai: Any) -> None:
    answer = openai.responses.create(
        model="demo",
        input=QUESTION[0]["content"],
        temperature=0,
        reasoning={"effort": "high"},
        instructions="Be short.",
    )
    assert answer.status == "completed" and [item.type for item in answer.output] == ["reasoning", "message"]
    tool = {"type": "function", **ROLL_DICE["function"], "strict": False}
    first = openai.responses.create(
        model="demo", input="Roll D6 dice twice!", tools=[tool, {"type": "web_search"}], temperature=0
    )
    calls = [item for item in first.output if item.type == "function_call"]
    assert len(calls) == 2
    items: list[Any] = [
        {"role": "user", "content": "Roll D6 dice twice!"},
        *[item.model_dump() for item in first.output],
    ]
    items += [{"type": "function_call_output", "call_id": call.call_id, "output": "3"} for call in calls]
    assert openai.responses.create(model="demo", input=items, tools=[tool], temperature=0).output_text.strip() == (
        "You rolled 3 and 3."
    )


def test_openai_responses_stream(openai: Any) -> None:
    tool = {"type": "function", **ROLL_DICE["function"], "strict": False}
    for given in (
        {"input": QUESTION[0]["content"], "reasoning": {"effort": "low"}},
        {"input": "Roll D6 dice twice!", "tools": [tool]},
    ):
        with openai.responses.stream(model="demo", temperature=0, **given) as stream:
            events = list(stream)
            final = stream.get_final_response()
        numbers = [event.sequence_number for event in events if hasattr(event, "sequence_number")]
        assert numbers == sorted(numbers)
        assert final.usage.output_tokens > 10
        assert final.output_text.strip() == ANSWER if "reasoning" in given else len(final.output) == 2


def test_openai_errors(openai: Any) -> None:
    import openai as module

    for changed, status, text in (
        ({"temperature": -1}, 400, "temperature"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": "word " * 20_000}]}, 413, "tokens"),
        ({"extra_body": {"best_of": 3}}, 400, "best_of"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "image_url",
        ),
        ({"tools": [ROLL_DICE], "tool_choice": {"type": "function", "function": {"name": "no"}}}, 400, "'no'"),
    ):
        with pytest.raises(module.APIStatusError) as error:
            openai.chat.completions.create(**{"model": "demo", "messages": QUESTION, **changed})
        assert error.value.status_code == status, changed
        assert text in str(error.value.body["message"]), changed


# --- anthropic ------------------------------------------------------------------------------------------------


def test_anthropic_messages(anthropic: Any) -> None:
    answer = anthropic.messages.create(
        extra_body=COLD,
        model="claude",
        max_tokens=600,
        messages=QUESTION,
        thinking={"type": "enabled", "budget_tokens": 300},
    )
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[1].text.strip() == ANSWER and answer.stop_reason == "end_turn"
    count = anthropic.messages.count_tokens(model="claude", messages=QUESTION)
    assert count.input_tokens > 10
    stopped = anthropic.messages.create(
        extra_body=COLD, model="claude", max_tokens=60, messages=QUESTION, stop_sequences=["than"]
    )
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "than")
    cut = anthropic.messages.create(extra_body=COLD, model="claude", max_tokens=2, messages=QUESTION)
    assert cut.stop_reason == "max_tokens"


def test_anthropic_tools_and_stream(anthropic: Any) -> None:
    tool = {
        "name": "roll_dice",
        "description": ROLL_DICE["function"]["description"],
        "input_schema": ROLL_DICE["function"]["parameters"],
    }
    messages: list[Any] = [{"role": "user", "content": "Roll D6 dice twice!"}]
    with anthropic.messages.stream(
        extra_body=COLD, model="claude", max_tokens=300, messages=messages, tools=[tool]
    ) as stream:
        answer = stream.get_final_message()
    calls = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use" and [call.input for call in calls] == [{"max_num": 6}] * 2
    messages += [
        {"role": "assistant", "content": answer.content},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "4"} for call in reversed(calls)],
        },
    ]
    final = anthropic.messages.create(
        extra_body=COLD,
        model="claude",
        max_tokens=300,
        messages=messages,
        tools=[tool],
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1"},
            {"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}},
        ],
    )
    assert "4" in final.content[0].text


# --- others ---------------------------------------------------------------------------------------------------


def test_langchain_agent_with_a_tool(served: Any) -> None:
    chat = pytest.importorskip("langchain_openai").ChatOpenAI
    agents = pytest.importorskip("langchain.agents")
    model = chat(model="demo", base_url=f"{served.url}/v1", api_key="none", temperature=0, max_retries=0)

    def roll_dice(max_num: int) -> int:
        """Roll a dice with the number 1 to N. User can select the number N."""
        return 3

    result = agents.create_agent(model, [roll_dice]).invoke(
        {"messages": [{"role": "user", "content": "Roll D6 dice twice!"}]}
    )
    assert result["messages"][-1].content.strip() == "You rolled 3 and 3."


def test_tools_and_a_schema_in_one_request(saying: Any) -> None:
    """langchain's agents send both: the model calls the tool, and then answers in the schema."""
    chat = pytest.importorskip("langchain_openai").ChatOpenAI
    agents = pytest.importorskip("langchain.agents")
    strategy = pytest.importorskip("langchain.agents.structured_output").ProviderStrategy
    pytest.importorskip("llguidance")
    from pydantic import BaseModel

    class Rolled(BaseModel):
        number: int

    def roll_dice(max_num: int) -> int:
        """Roll a dice with the number 1 to N."""
        return 3

    served = saying('<tool_call>{"name": "roll_dice", "arguments": {"max_num": 6}}</tool_call>', '{"number": 3}')
    model = chat(model="x", base_url=f"{served.url}/v1", api_key="none", max_retries=0, max_tokens=60)
    agent = agents.create_agent(model, [roll_dice], response_format=strategy(Rolled))
    result = agent.invoke({"messages": [{"role": "user", "content": "Roll a dice."}]})
    assert result["structured_response"] == Rolled(number=3)
    assert [message.type for message in result["messages"]] == ["human", "ai", "tool", "ai"]


@pytest.mark.filterwarnings("ignore")
def test_litellm(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no request to its site
    litellm = pytest.importorskip("litellm")
    answer = litellm.completion(
        model="openai/demo", api_base=f"{served.url}/v1", api_key="none", messages=QUESTION, temperature=0
    )
    assert answer.choices[0].message.content.strip() == ANSWER


def test_instructor_with_a_schema(served: Any) -> None:
    instructor = pytest.importorskip("instructor")
    openai = pytest.importorskip("openai")
    pytest.importorskip("llguidance")
    from pydantic import BaseModel

    class Answer(BaseModel):
        bigger: Literal["3.12", "3.9"]

    client = instructor.from_openai(
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none"), mode=instructor.Mode.JSON_SCHEMA
    )
    assert isinstance(
        client.chat.completions.create(model="demo", messages=QUESTION, response_model=Answer, max_retries=0), Answer
    )
