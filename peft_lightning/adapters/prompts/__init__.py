"""Trained virtual tokens before the text: prompt tuning, p-tuning and prefix tuning.

Start with ``base.py``, what the methods share, and ``prompt_tuning.py``, the simplest of them.
``positions.py`` says where virtual tokens stand in a batch.
"""
