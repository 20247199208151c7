"""Sources of records: data files, a folder or pattern of them, or a data set of the hub."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_lightning.data.files.compressed import DAMAGE
from peft_lightning.data.files.csv_files import SEPARATORS, dialect_of
from peft_lightning.data.files.data_files import DataFile, kind_of
from peft_lightning.data.files.encodings import check_encoding
from peft_lightning.data.files.folders import WILDCARDS, find_files
from peft_lightning.data.files.hub_datasets import FORMS, HubName, hub_rows, why_not_loaded
from peft_lightning.data.files.readers import estimated_num_rows, read_file
from peft_lightning.data.files.split_names import MEANT
from peft_lightning.data.records import LocatedRecord
from peft_lightning.files import sha256_of_file
from peft_lightning.messages import UserError, check_choice, did_you_mean, shortened

_WITH_SPLIT = re.compile(r"(?P<path>.+)\[(?P<split>[^\[\]]+)\]")
MAX_FILES_PEEKED = 20  # for their separators


@dataclass(frozen=True)
class Source:
    """Data files or a hub data set, read record by record.

    Args:
        name: The path or hub id as the user wrote it, for messages.
        files: The local files in reading order; empty for a hub data set.
        hub: The hub data set; None for local files.
        purpose: The option of the data that the source is for: train, val, test or predict.
        encoding: Encoding of text files; None for UTF-8.
        left_out: Names of the files of the folder that are not read.
    """

    name: str
    files: tuple[DataFile, ...] = ()
    hub: HubName | None = None
    purpose: str | None = None
    encoding: str | None = None
    left_out: tuple[str, ...] = ()

    def records(self) -> Iterator[LocatedRecord]:
        """Yield every record, or the error of a malformed one, with its location ("file:line").

        Raises:
            UserError: If there is no record, or a file cannot be read at all or to its end.
        """
        is_empty = True
        for dataset in self.datasets:
            for row in hub_rows(dataset, self._named(dataset)):
                is_empty = False
                yield row
        for file in self.files:
            for row in read_file(file, self.encoding):
                is_empty = False
                yield row
        if is_empty:
            files = ", ".join(str(file.path) for file in self.files)
            where = f" in {files}" if files and files != self.name else ""
            raise UserError(f"{self.name}: no rows{where}")

    def fingerprint(self) -> list[str]:
        """Return a hash of each file and what is read of it, or of the hub data set's splits."""
        if self.hub is not None:
            return [str(dataset._fingerprint) for dataset in self.datasets]
        return [
            ":".join([sha256_of_file(file.path), file.kind, *file.keys, *(file.columns or ())])
            for file in self.files
        ]

    def estimated_num_rows(self) -> int | None:
        """Return the number of rows, estimated from lines; None where counting would be slow."""
        if self.hub is not None:
            return sum(map(len, self.datasets))
        counts = [estimated_num_rows(file) for file in self.files]
        return None if None in counts else sum(n for n in counts if n is not None)

    def summary(self) -> str:
        """Return which files, splits and separators are read, in one line.

        It is empty if the name says it all: a single file that is read in the usual way.
        """
        parts = []
        if self.hub is not None:
            splits = [str(dataset.split) for dataset in self.datasets]
            rows = sum(map(len, self.datasets))
            parts.append(f"the split {' and '.join(splits)} of {rows:,} rows")
        names = [file.path.name for file in self.files]
        if len(names) > 1:
            few = names if len(names) <= 4 else [names[0], "...", names[-1]]
            parts.append(f"{len(names)} files ({', '.join(few)})")
        elif self.left_out:
            parts += names
        for file in self.files[:MAX_FILES_PEEKED]:
            if file.keys:
                parts.append(
                    f"the rows of {' and '.join(map(repr, file.keys))} in {file.path.name}"
                )
            if dialect := self._unusual_dialect(file):
                parts.append(f"{file.path.name} as separated {dialect}")
        if self.left_out:
            parts.append(f"left out: {shortened(self.left_out)}")
        purpose = f" for data.{self.purpose}" if self.purpose else ""
        return f"{self.name}: reading{purpose} {'; '.join(parts)}" if parts else ""

    @functools.cached_property
    def datasets(self) -> list[Any]:
        """The ``datasets.Dataset`` instances of a hub data set."""
        return [] if self.hub is None else self.hub.load(self.purpose)

    def _named(self, dataset: Any) -> str:
        return self.name if len(self.datasets) == 1 else f"{self.name}[{dataset.split}]"

    def _unusual_dialect(self, file: DataFile) -> str:
        usual = {"csv": ",", "tsv": "\t"}.get(file.kind)
        if usual is None:
            return ""
        try:
            dialect = dialect_of(file, self.encoding)
        except (UserError, *DAMAGE, UnicodeError):  # reading reports it
            return ""
        said = [] if dialect.is_quoted else ["with quotes as text"]
        if dialect.separator != usual:
            said.append(f"by {SEPARATORS.get(dialect.separator, repr(dialect.separator))}")
        return " ".join(reversed(said))


def find_source(
    path: str | Source, split: str | None = None, encoding: str | None = None
) -> Source:
    """Return the local files that ``path`` stands for, or the hub data set of that name.

    A folder or pattern stands for its data files, those in folders of it included. If some are
    named like splits, those that are meant for ``split`` are taken; see docs/data-files.md.

    Args:
        path: A file, a folder, a pattern such as "data/*.jsonl", either of them with "[split]", or
            a data set of the hub; see ``HubName``. A source is returned as it is.
        split: What the data is for: train, val, test or predict. None for all files of a folder,
            and for the split train of a hub data set.
        encoding: Encoding of text files; None for UTF-8.

    Raises:
        UserError: If none of them exists; suggests similar file names. If no file is meant.
    """
    if isinstance(path, Source):
        return path
    if split is not None:
        check_choice("split", split, tuple(MEANT))
    if encoding is not None:
        encoding = check_encoding(encoding)
    try:
        found = find_files(path, split, None, encoding)
        named = _WITH_SPLIT.fullmatch(path)
        if found is None and named and Path(named["path"]).expanduser().exists():
            found = find_files(named["path"], split, named["split"], encoding)
        if found is not None:
            return Source(path, found.files, None, split, encoding, found.left_out)
        missing = f"{path}: no such file or folder{_nearest(Path(path).expanduser())}"
    except OSError as error:  # no right to read it, or longer than a path can be
        raise UserError(f"{path[:200]}: cannot be read: {error.strerror}") from None
    except RuntimeError as error:  # the home folder of nobody
        raise UserError(f"{path}: {error}") from None
    return _from_hub(path, missing, split, encoding)


def as_list(paths: Any) -> list[Any]:
    """Return paths or sources, one or several, as a list."""
    return [paths] if isinstance(paths, str | Source) else list(paths)


def _from_hub(path: str, missing: str, purpose: str | None, encoding: str | None) -> Source:
    """Return the data set of the hub that ``path`` names; ``missing`` says that it is not here."""
    hub = None if kind_of(path) and "://" not in path else HubName.parse(path)
    is_address = "://" in path
    if hub is None:
        if is_address:
            raise UserError(f"{path}: an address; download the file and give its path, or {FORMS}")
        if kind_of(path) is None and not any(c in path for c in WILDCARDS.strip("[")):
            missing += f"; {FORMS}"
        raise UserError(missing)
    try:
        if hub.file is not None:
            found = find_files(str(hub.download()), purpose, hub.split, encoding)
            if found is None:
                raise UserError(f"{path}: no such file in the data set {hub.name}")
            return Source(path, found.files, None, purpose, encoding, found.left_out)
        source = Source(path, hub=hub, purpose=purpose)
        assert source.datasets
    except UserError:
        raise
    except Exception as error:
        missing = f"{path}:" if is_address else f"{missing};"
        raise UserError(
            f"{missing} {'a' if is_address else 'nor could a'} data set of that name"
            f"{' could not' if is_address else ''} be loaded from the hub"
            f" ({why_not_loaded(error)}); {FORMS}"
        ) from error
    return source


def _nearest(path: Path) -> str:
    """Return "; did you mean ..." with similar names in the closest parent folder that exists."""
    folder = path.parent
    while not folder.is_dir():
        path, folder = folder, folder.parent
    names = [p.name for p in folder.iterdir()]
    return did_you_mean(path.name, names, most=3, show=lambda name: str(folder / name))
