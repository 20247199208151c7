"""What the tests of data share."""

import json

import pytest


@pytest.fixture
def jsonl(tmp_path):
    """Return a function that writes records to a JSONL file and returns its path."""

    def write(name, records):
        path = tmp_path / name
        lines = (r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return write
