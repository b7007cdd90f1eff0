"""Many questions about one document: it is read once, also by the next process."""

import tempfile
from pathlib import Path

from exaone4_mlx import PromptCache, generate, load

model, tokenizer = load("demo")
document = "The capital of South Korea is Seoul. " * 40
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "document.safetensors")
    generate(model, tokenizer, document, prompt_cache=(cache := PromptCache(model, tokenizer)), max_tokens=1)
    cache.save(file)
    for question in ("What is the capital of South Korea?", "Hello!"):
        cache = PromptCache.load(file, model, tokenizer)
        reply = generate(model, tokenizer, f"{document}\n\n{question}", prompt_cache=cache, max_tokens=40)
        print(f"{question} {reply.text!r} ({reply.cached_tokens} of {reply.prompt_tokens} tokens were cached)")
