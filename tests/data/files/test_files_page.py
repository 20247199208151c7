"""docs/data-files.md names every suffix, split, encoding and form of the hub that is read."""

import re
from pathlib import Path

import pytest

from peft_lightning.data.files.compressed import COMPRESSIONS
from peft_lightning.data.files.data_files import KINDS
from peft_lightning.data.files.encodings import CANDIDATES
from peft_lightning.data.files.hub_datasets import HubName
from peft_lightning.data.files.split_names import MEANT, SPLIT_WORDS

PAGE = (Path(__file__).parents[3] / "docs" / "data-files.md").read_text()
NAMES = set(re.findall(r"`([^`\n]+)`", PAGE))
HUB_NAMES = [name for name in sorted(NAMES) if "gsm8k" in name]


def test_the_page_names_every_suffix_option_and_split():
    words = {word for words in SPLIT_WORDS.values() for word in words}
    assert {*KINDS, *COMPRESSIONS, *words, *(f"data.{option}" for option in MEANT)} <= NAMES


def test_the_page_names_every_encoding_that_is_guessed():
    assert {name for name, _ in CANDIDATES} <= set(re.findall(r"[\w-]+", PAGE))


@pytest.mark.parametrize("name", HUB_NAMES)
def test_a_name_of_the_hub_on_the_page_is_read(name):
    found = HubName.parse(name)
    assert found is not None
    assert found.name in ("openai/gsm8k", "gsm8k")


def test_the_page_has_names_of_the_hub():
    assert len(HUB_NAMES) >= 10
