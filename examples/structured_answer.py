"""An answer that follows a JSON schema: pip install -e '.[constrain]'."""

import json

from exaone4_mlx import generate, load

schema = {
    "type": "object",
    "properties": {"bigger": {"type": "string", "enum": ["3.12", "3.9"]}, "sure": {"type": "boolean"}},
    "required": ["bigger", "sure"],
}
reply = generate(
    *load("demo"),
    "Which one is bigger, 3.12 vs 3.9?",
    thinking=True,  # the thought is free; the answer follows the schema
    temperature=0,
    response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
)
print(json.loads(reply.text))
