"""OpenAI's dialect /v1/responses, without stored state: each request holds the whole conversation.

Notes:
- Tools of other types than `function` and `namespace` (a web search) are left out, because clients send them always.
- Items that hold no text of a conversation (an encrypted thought, say) are left out, too.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ..generation.options import Options
from .contract import EFFORTS, Contract, Effort, Number, Object, Whole, is_continued
from .engine import Task
from .items import read_items, read_tools, with_system
from .openai import Function, FunctionTool, NamedChoice, NamedFunction, chosen_tools


class Reasoning(Contract):
    effort: Effort | None = None
    summary: str | None = Field(None, description="No effect: the thought is the summary.")
    generate_summary: str | None = Field(None, description="No effect.")


class TextFormat(Contract):
    format: Object | None = None
    verbosity: str | None = Field(None, description="No effect.")


class FunctionChoice(Contract):
    type: Literal["function"] = "function"
    name: str


class ResponsesRequest(Contract):
    """A request to /v1/responses."""

    model: str = ""
    input: str | list[Object]
    instructions: str | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    max_output_tokens: Whole | None = None
    tools: list[Object] | None = None
    tool_choice: Literal["auto", "none", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextFormat | None = None
    stream: bool | None = None
    store: bool | None = Field(None, description="No effect: nothing is stored.")
    include: list[str] | None = Field(None, description="No effect.")
    metadata: Object | None = Field(None, description="No effect.")
    client_metadata: Object | None = Field(None, description="No effect.")
    prompt_cache_key: str | None = Field(None, description="No effect.")
    prompt_cache_retention: str | None = Field(None, description="No effect.")
    prompt_cache_options: Object | None = Field(None, description="No effect.")
    stream_options: Object | None = Field(None, description="No effect.")
    safety_identifier: str | None = Field(None, description="No effect.")
    service_tier: str | None = Field(None, description="No effect.")
    truncation: Literal["disabled"] | None = None
    user: str | None = Field(None, description="No effect.")
    previous_response_id: str | None = None
    background: Literal[False] | None = None

    @field_validator("previous_response_id")
    @classmethod
    def stateless(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("no response is stored here: send the whole conversation in input")
        return value

    def functions(self) -> tuple[list[Object], dict[str, tuple[str, str]]]:
        """The functions that are offered; (namespace, name) of each that is in a namespace, by its name."""
        return read_tools(self.tools or (), [] if isinstance(self.input, str) else self.input)

    def task(self, thinks: bool) -> Task:
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        messages = read_items(items)
        if self.instructions:
            messages = with_system(self.instructions, messages)
        effort = self.reasoning.effort if self.reasoning else None
        given: Object = {"continue_final_message": (continued := is_continued(messages))}
        given["thinking"] = not continued and (EFFORTS[effort] if effort else thinks)
        for name, value in {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_output_tokens,
        }.items():
            if value is not None:
                given[name] = value
        form = self.text.format if self.text else None
        if form is not None and form.get("type") == "json_schema":
            given["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}
        elif form is not None and form.get("type") != "text":
            given["response_format"] = form
        functions, _ = self.functions()
        tools = [
            FunctionTool(
                function=Function(**{key: value for key, value in tool.items() if key in Function.model_fields})
            )
            for tool in functions
        ]
        choice = self.tool_choice
        named = NamedChoice(function=NamedFunction(name=choice.name)) if isinstance(choice, FunctionChoice) else choice
        offered, forced, strict = chosen_tools(tools, named)
        return Task(messages, Options(**given), offered, forced, strict, self.parallel_tool_calls is False)
