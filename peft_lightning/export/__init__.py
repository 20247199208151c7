"""Models for other programs: an adapter merged into its base as an HF folder, or a GGUF file.

Start with ``merged_folder.py`` (``write_merged``) and ``gguf.py`` (``write_lora``,
``write_model``); ``verify.py`` (``compare``) verifies the result against the base with its
adapter. The names are imported from their files, as those of GGUF need the gguf package.
"""
