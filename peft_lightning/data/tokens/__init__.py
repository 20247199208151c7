"""From a conversation or plain text to token ids and their weights in the loss.

``tokenization.py`` is where to start. ``rendering.py`` prints a row with its chat template:
``generated_turns.py`` finds each answer as generation would produce it, ``content_check.py`` what
the template leaves out. ``text_tokenizer.py`` gives a prompt the tokens that it has alone.
"""
