"""A conversation with a tool: a Python function, described to the model by its types and its docstring."""

from exaone4_mlx import Chat, ToolResult, load


def get_weather(city: str) -> dict:
    """Get the current weather of a city.

    Args:
        city: Name of the city
    """
    return {"temperature": 11, "condition": "rainy"}


chat = Chat(*load("demo"), tools=[get_weather], temperature=0)
turn = chat.send("부산 날씨 어때?")
for event in turn:
    if isinstance(event, ToolResult):
        print(f"{event.call.name}({event.call.arguments}) -> {event.content}")
print(chat.messages[-1]["content"])
print(chat.ask("안녕하세요"))  # the conversation goes on; what was read is not read again
