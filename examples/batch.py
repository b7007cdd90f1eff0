"""Several prompts at once: the model reads its weights once for all of them, token by token."""

from exaone4_mlx import generate_batch, load

model, tokenizer = load("demo")
questions = [
    "What is the capital of South Korea?",
    "대한민국의 수도는?",
    "¿Cuál es la capital de Corea del Sur?",
    "3 + 4?",
]
for question, reply in zip(questions, generate_batch(model, tokenizer, questions, temperature=0), strict=True):
    print(f"{question} {reply.text}")
