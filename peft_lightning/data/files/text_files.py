"""Text files while they are read: decompressed, of one encoding, without a byte order mark."""

import functools
import io
from collections.abc import Iterator

from peft_lightning.data.files.compressed import (
    COMPRESSIONS,
    DAMAGE,
    MAGIC,
    content_of,
    open_decompressed,
)
from peft_lightning.data.files.data_files import DataFile
from peft_lightning.data.files.encodings import (
    check_encoding,
    guess_encoding,
    is_ascii_compatible,
    is_utf8,
    marked_encoding,
)
from peft_lightning.data.records import MAX_ROW_SIZE, RowError
from peft_lightning.messages import UserError

SAMPLE = 2**20  # bytes from which an encoding is guessed
BLOCK = 2**18  # bytes of lines that are read together
PEEK = 2**13  # bytes that are looked at before a file is read
MIN_CHARACTERS = 4  # of several bytes, that are UTF-8 by no chance


class TextFile:
    """A text file from its first character.

    A byte order mark says more than ``encoding``, which is for files without.

    Args:
        file: The file.
        encoding: Its encoding; None for UTF-8.

    Attributes:
        stream: Its bytes, decompressed, behind a byte order mark.
        codec: The encoding of these bytes.

    Raises:
        UserError: If its first bytes are not those of text in the encoding.
    """

    def __init__(self, file: DataFile, encoding: str | None) -> None:
        self.file, self.encoding = file, encoding
        self.stream = open_decompressed(file.path, file.compression)
        try:
            head = self.stream.peek(PEEK)[:PEEK]
            self.codec = self._codec(head)
        except BaseException:
            self.stream.close()
            raise
        if self.codec == "utf-8" and marked_encoding(head) == "utf-8":
            self.stream.read(3)
        self._hint: str | None = None

    def __enter__(self) -> "TextFile":
        return self

    def __exit__(self, *args: object) -> None:
        self.stream.close()

    def head(self) -> str:
        """Return the first characters, without moving on."""
        text = self.stream.peek(PEEK)[:PEEK].decode(self.codec, "ignore")
        return text.removeprefix("\ufeff")

    def blocks_of_lines(self) -> Iterator[list[bytes]]:
        """Yield lists of lines, as bytes in ``codec``, which becomes UTF-8 for UTF-16 and UTF-32.

        A file that cannot be read to its end gives all its lines before the error.
        """
        lines: Iterator[bytes]
        if not is_ascii_compatible(self.codec):
            reader = io.TextIOWrapper(self.stream, self.codec, newline="\n")
            self.codec = "utf-8"
            lines = (line.removeprefix("\ufeff").encode("utf-8") for line in reader)
        elif self.file.compression is None:
            while block := self.stream.readlines(BLOCK):
                yield block
            return
        else:
            lines = self._short_lines()
        yield from _blocks(lines)

    def _short_lines(self) -> Iterator[bytes]:
        """Yield lines, cut beyond the limit of a row: a small file may stand for an endless one."""
        limit = MAX_ROW_SIZE + 1
        for line in iter(functools.partial(self.stream.readline, limit), b""):
            yield line
            while len(line) == limit and line[-1:] != b"\n":
                line = self.stream.readline(limit)

    def characters(self) -> io.TextIOWrapper:
        """Return the text as a stream with its line ends; invalid bytes are lone surrogates."""
        errors = "surrogateescape" if is_ascii_compatible(self.codec) else "strict"
        return io.TextIOWrapper(self.stream, self.codec, errors=errors, newline="")

    def text(self) -> str:
        """Return the whole text.

        Raises:
            UserError: If it is in another encoding; names the one that it looks like.
        """
        content = self.stream.read()
        try:
            return content.decode(self.codec).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            place = f"byte {error.start + 1:,}, in line {line:,}"
            raise UserError(
                f"{self.file.path}: invalid {self.name} at {place}{self.hint()}"
            ) from None

    @property
    def name(self) -> str:
        """The encoding's name for messages."""
        return "UTF-8" if self.encoding is None else self.encoding

    def row_error(self, detail: str, line: bytes = b"") -> RowError:
        """Return the error of a row with bytes that the encoding does not have.

        Raises:
            UserError: If most rows have some, because the whole file is in another encoding.
        """
        return RowError(f"invalid {self.name}", f"{detail}{self.hint(line)}".removeprefix("; "))

    def hint(self, line: bytes = b"") -> str:
        """Return the end of a message, which names the encoding that the file looks like.

        Args:
            line: The line that could not be read, for files that begin with ASCII.

        Raises:
            UserError: If most lines are not in the encoding that the file is read in.
        """
        if self._hint is None:
            with open_decompressed(self.file.path, self.file.compression) as stream:
                try:
                    sample = content_of(stream, SAMPLE)
                except DAMAGE:
                    sample = b""
            if self.encoding is not None:
                self._hint = _remedy(guess_encoding(sample), self.encoding)
                return self._hint
            invalid, valid, all_lines = _lines_beyond_ascii(sample, cut=len(sample) == SAMPLE)
            guess = guess_encoding(sample if invalid else line)
            few = invalid <= valid or (invalid < 5 and 2 * invalid < all_lines)
            remedy = _remedy(guess, "utf-8")
            if not few:
                raise UserError(f"{self.file.path}: not UTF-8{remedy}")
            self._hint = remedy if guess and invalid >= valid else ""
        return self._hint

    def _codec(self, head: bytes) -> str:
        path, encoding = self.file.path, self.encoding
        for magic, (suffix, kind) in MAGIC.items():
            if head.startswith(magic):
                name = path.name if suffix in COMPRESSIONS else path.stem
                raise UserError(f"{path}: its content is {kind}; name it {name}{suffix}")
        marked = marked_encoding(head)
        if marked == "utf-8":
            return marked
        if encoding is not None:
            codec = marked or check_encoding(encoding)
            if codec != "utf-8" and _is_surely_utf8(head):
                raise UserError(
                    f"{path}: the file is in UTF-8, not in {encoding}; leave data.encoding out"
                )
            return codec
        guess = guess_encoding(head) if marked or b"\0" in head else None
        if guess is not None:
            name = marked or guess[0]
            raise UserError(f"{path}: the file is in {name.upper()}; set data.encoding: {name}")
        return "utf-8"


def _blocks(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    size = 0
    try:
        for line in lines:
            block.append(line)
            size += len(line)
            if size >= BLOCK:
                yield block
                block, size = [], 0
    except (*DAMAGE, UnicodeError):
        yield block
        raise
    yield block


def _remedy(guess: tuple[str, str] | None, tried: str) -> str:
    if guess is None or guess[0] == tried:
        return (
            "; set data.encoding to the encoding that it was written in, such as cp949, cp932,"
            " gb18030, windows-1252 or utf-16"
        )
    name, excerpt = guess
    read = f" ({excerpt!r})" if excerpt else ""
    return f"; it looks like {name}{read}: set data.encoding: {name}"


def _lines_beyond_ascii(sample: bytes, cut: bool) -> tuple[int, int, int]:
    """Return the numbers of lines that are not UTF-8, that are but not ASCII, and of all lines."""
    lines = [line for line in sample.splitlines() if line.strip()]
    lines = lines[:-1] if cut and len(lines) > 1 else lines
    beyond = [line for line in lines if not line.isascii()]
    valid = sum(map(is_utf8, beyond))
    return len(beyond) - valid, valid, len(lines)


def _is_surely_utf8(head: bytes) -> bool:
    if not is_utf8(head):
        return False
    text = head.decode("utf-8", "ignore")
    return sum(not character.isascii() for character in text) >= MIN_CHARACTERS
