"""An HTTP server for one model: OpenAI's chat completions, completions and responses, and Anthropic's messages."""
