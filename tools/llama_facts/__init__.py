"""What this project relies on in a llama-server, asked of a binary: `python -m tools.llama_facts BINARY`."""
