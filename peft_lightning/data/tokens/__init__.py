"""From a conversation or plain text to token ids and their weights in the loss.

``tokenization.py`` is where to start. ``conversation_rendering.py`` prints a conversation with its
chat template: ``generated_turns.py`` finds each answer as generation would produce it,
``answer_ends.py`` where it ends, ``content_check.py`` what the template leaves out.
``text_tokenizer.py`` gives a prompt the tokens that it has alone.
"""
