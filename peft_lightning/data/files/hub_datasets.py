"""Data sets of the Hugging Face hub: the forms of their names, and loading them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from peft_lightning.data.files.arrow_files import ROWS, plain_rows
from peft_lightning.data.files.split_names import choose_split
from peft_lightning.data.records import LocatedRecord
from peft_lightning.messages import UserError
from peft_lightning.process.network import hub_answers

FORMS = (
    "a data set of the hub is owner/name, with :config, @revision and [split] as in"
    " owner/name:config@revision[train[:100]], or hf://datasets/owner/name/FILE"
)
_PART = r"\w[\w.-]*"
_NAME = re.compile(
    rf"(?P<name>{_PART}(/{_PART})?)(?P<more>(:[\w.+-]+|@[\w./+-]+)*)(\[(?P<split>.+)\])?", re.ASCII
)
_URL = re.compile(r"(https?://(www\.)?(huggingface\.co|hf\.co)/|hf://)(?P<path>[^\[]+)", re.I)
_SLICE = r"(\[-?\d*%?:-?\d*%?\](\([\w]+\))?)?"
_SPLIT = re.compile(rf"\w[\w.-]*{_SLICE}(\s*\+\s*\w[\w.-]*{_SLICE})*")


@dataclass(frozen=True)
class HubName:
    """The name of a data set of the hub, or of files in its repository.

    Args:
        name: "owner/name", or "name" for a canonical data set.
        config: One of its configurations; None for the only one.
        split: A split, a slice of one such as "train[:10%]", or a sum of them; None for the one
            that is meant.
        revision: A branch, tag or commit; None for the newest.
        file: A file, folder or pattern in the repository; None for the data set.
    """

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubName | None":
        """Return the name that ``text`` is, or None if it has none of the forms.

        Raises:
            UserError: If it is an address of the hub, or a name with a split, and malformed.
        """
        url = _URL.match(text)
        if url is not None:
            return cls._from_url(text, url["path"], text[url.end() :])
        match = _NAME.fullmatch(text)
        if match is None:
            return None
        found: dict[str, str] = {}
        for sign, value in re.findall(r"([:@])([^:@]+)", match["more"]):
            if sign in found:
                raise UserError(f"{text}: two times {sign!r}; {FORMS}")
            found[sign] = value
        return cls(match["name"], found.get(":"), _split(match["split"], text), found.get("@"))

    @classmethod
    def _from_url(cls, text: str, path: str, rest: str) -> "HubName":
        parts = [unquote(part) for part in urlsplit(path).path.split("/") if part]
        end = re.fullmatch(r"\[(?P<split>.+)\]", rest)
        if len(parts) < 2 or parts[0] != "datasets" or (rest and end is None) or ".." in parts:
            raise UserError(f"{text}: no address of a data set; {FORMS}")
        split = _split(end["split"], text) if end else None
        is_page = text.lower().startswith("http")
        pages = ("tree", "blob", "resolve", "raw", "viewer")
        has_owner = len(parts) > 2 and not (is_page and parts[2] in pages)
        named = cls.parse("/".join(parts[1:3] if has_owner else parts[1:2]))
        if named is None:
            raise UserError(f"{text}: no address of a data set; {FORMS}")
        rest_parts = parts[3:] if has_owner else parts[2:]
        if is_page and rest_parts:
            page, *rest_parts = rest_parts
            if page == "viewer":
                config, of_page, *_ = [*rest_parts, None, None]
                return replace(named, config=config, split=split or of_page)
            if page not in pages or not rest_parts:
                raise UserError(f"{text}: no address of a data set; {FORMS}")
            named = replace(named, revision=rest_parts.pop(0))
        file = "/".join(rest_parts) or None
        return replace(named, split=split, file=file)

    def load(self, purpose: str | None) -> list[Any]:
        """Load the split that the name says, or those that are meant for ``purpose``.

        Args:
            purpose: What the data is for, a key of ``MEANT``; None for the split train.

        Returns:
            Instances of ``datasets.Dataset``.

        Raises:
            UserError: If several splits or none of them are meant.
            Exception: Of ``datasets`` and the hub, if the data set cannot be loaded.
        """
        from datasets import load_dataset  # slow to import and rarely needed

        with _one_attempt():
            loaded = load_dataset(self.name, self.config, split=self.split, revision=self.revision)
        if not isinstance(loaded, dict):
            return [loaded]
        shown = f"{self.name}:{self.config}" if self.config else self.name
        shown += f"@{self.revision}" if self.revision else ""
        return [loaded[split] for split in choose_split(list(loaded), purpose or "train", shown)]

    def download(self) -> Path:
        """Download ``file``, or the files of this folder or pattern, and return where they are.

        Raises:
            Exception: Of the hub, if they cannot be had.
        """
        from huggingface_hub import snapshot_download

        assert self.file is not None
        with _one_attempt():
            folder = snapshot_download(
                self.name,
                repo_type="dataset",
                revision=self.revision,
                allow_patterns=[self.file, f"{self.file}/*"],
            )
        return Path(folder) / self.file


@contextmanager
def _one_attempt() -> Iterator[None]:
    """Let `datasets` and the hub's client use their caches alone if the hub cannot be reached.

    They would otherwise try each request again for half a minute.
    """
    if hub_answers():
        yield
        return
    import datasets.config
    from huggingface_hub import constants

    places: list[Any] = [datasets.config, constants]
    before = [(place, place.HF_HUB_OFFLINE) for place in places]
    for place, _ in before:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in before:
            place.HF_HUB_OFFLINE = value


def why_not_loaded(error: Exception) -> str:
    """Return in one line why a data set could not be loaded."""
    is_offline = isinstance(error, ConnectionError)
    is_offline |= type(error).__name__ == "LocalEntryNotFoundError"  # of huggingface_hub
    if is_offline and not hub_answers():
        return "it cannot be reached, or HF_HUB_OFFLINE is set, and the cache does not have it"
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"


def hub_rows(dataset: Any, name: str) -> Iterator[LocatedRecord]:
    """Yield the rows of a ``datasets.Dataset`` as plain values, with their locations."""
    tables = dataset.with_format("arrow").iter(batch_size=ROWS)
    for number, record in enumerate(plain_rows(tables), start=1):
        yield record, f"{name}: row {number}"


def _split(split: str | None, text: str) -> str | None:
    if split is not None and not _SPLIT.fullmatch(split):
        raise UserError(
            f"{text}: {split!r} is no split; write [train], [train[:100]], [train[:10%]] or"
            " [train+test]"
        )
    return split
