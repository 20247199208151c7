"""Rows of training to show: some of each source, with their tokens in the loss marked."""

from transformers import PreTrainedTokenizerBase

from peft_lightning.data.split import Split
from peft_lightning.data.tokens.marked_tokens import MarkedRow, marked_tokens

MOST_SOURCES = 8


def example_rows(split: Split, tokenizer: PreTrainedTokenizerBase, number: int) -> list[MarkedRow]:
    """Return rows of a split, from each of its sources about as many, spread over it.

    Args:
        split: The rows.
        tokenizer: Their tokenizer.
        number: How many rows; at least one of each source is shown, of at most eight sources.
    """
    firsts = {int(s.rows[0]): i for i, s in reversed([*enumerate(split.sources)]) if len(s.rows)}
    places = sorted(firsts.values())[:MOST_SOURCES]
    each = max(1, number // max(1, len(places)))
    found = []
    for place in places:
        rows = split.sources[place].rows
        for i in range(min(each, len(rows))):
            row = split.dataset[int(rows[i * len(rows) // each])]
            tokens = marked_tokens(tokenizer, row["input_ids"], row["loss_weights"])
            found.append(MarkedRow(split.names[place], tokens))
    return found
