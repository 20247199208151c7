"""Supervised fine-tuning data: from files of records to batches of token ids."""
