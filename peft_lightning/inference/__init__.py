"""Text from a model: loading it with its adapters, and generating in batches.

Start with ``load.py`` (a base model and its adapters) and ``generate.py`` (batched generation);
``stop_tokens.py`` finds the ids that end an answer. ``prompts.py`` and ``answers.py`` answer the
rows of a file, ``partial_file.py`` keeps those of an interrupted run, and ``chat_session.py`` holds
a conversation.
"""
