"""Prints a thought and an answer while they come."""

from exaone4_mlx import Answer, Done, Thinking, load, stream_generate

model, tokenizer = load("demo")  # or "LGAI-EXAONE/EXAONE-4.0-1.2B"
for event in stream_generate(model, tokenizer, "Which one is bigger, 3.12 vs 3.9?", thinking=True):
    match event:
        case Thinking(text):
            print(f"\x1b[2m{text}\x1b[0m", end="", flush=True)  # dim
        case Answer(text):
            print(text, end="", flush=True)
        case Done(thinking_tokens=thought, answer_tokens=answer, decode_seconds=seconds):
            print(f"\n[{thought} tokens of the thought and {answer} of the answer in {seconds:.2f} s]")
