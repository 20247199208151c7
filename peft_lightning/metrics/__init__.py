"""Scores of answers by name: exact match, JSON match, ROUGE, BLEU and others."""
