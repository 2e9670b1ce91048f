"""align: token-level credit for language models that you can compose, inspect and trust."""

__version__ = "0.1.0"
