"""Anyone's bytes on disk: written as a whole, checked, read.

``atomic.py`` replaces files and folders so that a crash leaves the old or the new content,
``checksums.py`` seals folders with SHA256SUMS and hashes files, ``outputs.py`` keeps a command from
writing in the place of another's work, ``lock.py`` lets one process at a time work in a folder,
``user_files.py`` reads a user's text and finds the cache folder. Other rooms use the names below.
"""

from peft_lightning.files.atomic import (
    atomic_file,
    atomic_folder,
    atomic_text,
    existing_folder,
    remove_folder,
    require_replaceable,
    scratch_folder,
)
from peft_lightning.files.checksums import (
    SUMS_FILE,
    read_checksums,
    require_undamaged,
    sealed_folder,
    sha256_of_file,
    sha256_of_json,
)
from peft_lightning.files.lock import lock_folder
from peft_lightning.files.outputs import (
    ANSWERS,
    CARD,
    CARD_FILE,
    Kind,
    marked_file,
    require_no_input,
    require_output,
    require_writable,
    sealed_card,
    sealed_files,
    unedited_card,
)
from peft_lightning.files.shared_cache import cannot_be_used, is_closed, is_denied, own_name
from peft_lightning.files.sizes import size_in_bytes
from peft_lightning.files.user_files import (
    read_text,
    user_cache,
)
from peft_lightning.files.write_errors import REFUSED, writing

__all__ = [
    "ANSWERS",
    "CARD",
    "CARD_FILE",
    "REFUSED",
    "SUMS_FILE",
    "Kind",
    "atomic_file",
    "atomic_folder",
    "atomic_text",
    "cannot_be_used",
    "existing_folder",
    "is_closed",
    "is_denied",
    "lock_folder",
    "marked_file",
    "own_name",
    "read_checksums",
    "read_text",
    "remove_folder",
    "require_no_input",
    "require_output",
    "require_replaceable",
    "require_undamaged",
    "require_writable",
    "scratch_folder",
    "sealed_card",
    "sealed_files",
    "sealed_folder",
    "sha256_of_file",
    "sha256_of_json",
    "size_in_bytes",
    "unedited_card",
    "user_cache",
    "writing",
]
