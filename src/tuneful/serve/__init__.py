"""A model answers over HTTP: OpenAI's protocol and Ollama's, and a page in the browser."""
