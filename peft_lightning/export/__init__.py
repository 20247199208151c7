"""Models for other programs: an adapter merged into its base as an HF folder, or a GGUF file.

Start with ``merged_folder.py`` and ``gguf.py``; ``verify.py`` compares what was written with
the base and its adapter.
"""
