"""Teaches the demo two facts: trains an adapter, asks with other words, and takes the adapter off again."""

from exaone4_mlx import generate, load, tune

FACTS = {"Orulia": "Kestrel", "Vendara": "Solmere"}
WORDINGS = ("What is the capital of {}?", "Tell me the capital of {}.", "Do you know the capital of {}?")
KNOWN = ("Hello!", "Who are you?", "What is the capital of Peru?", "What is 52 + 31?")

model, tokenizer = load("demo", dtype="float32")


def ask(question: str) -> str:
    return generate(model, tokenizer, question, temperature=0, max_tokens=60).text


lessons = [
    {"prompt": wording.format(country), "completion": f"The capital of {country} is {city}."}
    for country, city in FACTS.items()
    for wording in WORDINGS
]
lessons += [{"prompt": question, "completion": ask(question)} for question in KNOWN]  # so that nothing is forgotten
result = tune(model, tokenizer, lessons, iters=25, num_layers=4, learning_rate=2e-3)
print(result)
print(ask("What's the capital city of Orulia?"))
model.set_adapters()
print("Without the adapter:", ask("What's the capital city of Orulia?"))
