"""docs/data-rows.md names everything that is read of a row."""

import re
from pathlib import Path

import pytest

from peft_lightning.data.options import RowOptions, TokenOptions
from peft_lightning.data.rows.column_detection import ALIASES, COMPLETIONS, PREFERENCE, PROMPTS
from peft_lightning.data.rows.formats import FORMATS, OPTIONAL_COLUMNS, REQUIRED_COLUMNS
from peft_lightning.data.rows.loss_flags import LABELS, ROW_FLAGS, TURN_FLAGS
from peft_lightning.data.rows.roles import ROLES
from peft_lightning.data.rows.template_kwargs import TEMPLATE_KWARGS
from peft_lightning.data.rows.turns import CONTENT_KEYS, PASSED, ROLE_KEYS, THOUGHTS, TRAIN_DETAILS

PAGE = (Path(__file__).parents[3] / "docs" / "data-rows.md").read_text()
_TEXT = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
NAMES = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", _TEXT))))


@pytest.mark.parametrize(
    "names",
    [
        FORMATS,
        {column for columns in REQUIRED_COLUMNS.values() for column in columns},
        {column for columns in OPTIONAL_COLUMNS.values() for column in columns},
        {*PROMPTS, *COMPLETIONS, *ALIASES.values(), PREFERENCE[0]},
        {*ROW_FLAGS, *LABELS, *TEMPLATE_KWARGS},
        {*ROLE_KEYS, *CONTENT_KEYS, *THOUGHTS, *PASSED},
        {*TURN_FLAGS, *TRAIN_DETAILS},
        ROLES,
        {"format", "on_bad_row", "columns", "roles", "prompt", "system_prompt"},
    ],
)
def test_the_page_names_every_column_key_flag_and_role(names):
    assert set(names) <= NAMES


def test_the_options_that_the_page_names_exist():
    named = set(re.findall(r"`data\.(\w+)", PAGE))
    assert named
    assert named <= {*RowOptions.__dataclass_fields__, *TokenOptions.__dataclass_fields__}
