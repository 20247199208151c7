"""BLEU and chrF against their definitions, and where sacrebleu is missing."""

import math
import sys
from collections import Counter

import pytest

from peft_lightning.messages import UserError
from peft_lightning.metrics import check_metrics, corpus_score, row_scores

ANSWERS = ["the cat sat on the mat today", "수도는 서울 이다 맞다 정말", "he ran"]
REFERENCES = ["the cat sat on a mat today", "수도는 서울 이다 맞다 그래", "he ran away"]


def ngrams(items, n):
    return Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))


def test_bleu_of_a_corpus_is_papinenis():
    """Papineni et al. 2002, section 2.3: clipped n-grams of all rows, and the brevity penalty."""
    precisions = []
    for n in range(1, 5):
        hits = total = 0
        for answer, reference in zip(ANSWERS, REFERENCES, strict=True):
            grams, wanted = ngrams(answer.split(), n), ngrams(reference.split(), n)
            hits += (grams & wanted).total()
            total += grams.total()
        precisions.append(hits / total)
    lengths = [sum(len(t.split()) for t in texts) for texts in (ANSWERS, REFERENCES)]
    brevity = math.exp(min(0, 1 - lengths[1] / lengths[0]))
    expected = brevity * math.exp(sum(math.log(p) for p in precisions) / 4)
    assert corpus_score("bleu", ANSWERS, REFERENCES) == pytest.approx(expected, rel=1e-12)


def chrf(pairs):
    """Popović 2015 with beta 2: mean precision and recall of 1 to 6 characters, without spaces."""
    precisions, recalls = [], []
    for n in range(1, 7):
        hits = given = wanted = 0
        for answer, reference in pairs:
            a, r = (ngrams("".join(text.split()), n) for text in (answer, reference))
            hits, given, wanted = hits + (a & r).total(), given + a.total(), wanted + r.total()
        if given and wanted:
            precisions.append(hits / given)
            recalls.append(hits / wanted)
    p, r = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 5 * p * r / (4 * p + r)


def test_chrf_is_popovics_of_a_corpus_and_of_a_row():
    pairs = list(zip(ANSWERS, REFERENCES, strict=True))
    assert corpus_score("chrf", ANSWERS, REFERENCES) == pytest.approx(chrf(pairs), rel=1e-9)
    rows = row_scores("chrf", ANSWERS, REFERENCES)
    assert rows == pytest.approx([chrf([pair]) for pair in pairs], rel=1e-9)


def test_bleu_of_a_short_row_is_of_the_orders_that_it_has():
    expected = math.exp(1 - 3 / 2)  # both n-gram orders match, and one word of three is missing
    assert row_scores("bleu", ["he ran"], ["he ran away"]) == pytest.approx([expected], rel=1e-9)


def test_without_sacrebleu_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UserError, match=r"chrf is computed by sacrebleu.*peft_lightning\[metrics"):
        check_metrics(["exact_match", "chrf"])
    check_metrics(["rougeL"])
