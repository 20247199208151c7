"""Models for serving: an adapter merged into its base, as an HF folder or a GGUF file."""
