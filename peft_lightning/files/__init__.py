"""Anyone's bytes on disk: written as a whole, checked, read.

``atomic.py`` replaces files and folders so that a crash leaves the old or the new content,
``checksums.py`` seals folders with SHA256SUMS and hashes files, ``lock.py`` lets one process at a
time work in a folder, ``user_files.py`` reads a user's text and finds the cache folder. Other rooms
use the names below.
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
from peft_lightning.files.outputs import require_no_input
from peft_lightning.files.shared_cache import cannot_be_used, is_closed, is_denied, own_name
from peft_lightning.files.sizes import size_in_bytes
from peft_lightning.files.user_files import (
    read_text,
    user_cache,
)

__all__ = [
    "SUMS_FILE",
    "atomic_file",
    "atomic_folder",
    "atomic_text",
    "cannot_be_used",
    "existing_folder",
    "is_closed",
    "is_denied",
    "lock_folder",
    "own_name",
    "read_checksums",
    "read_text",
    "remove_folder",
    "require_no_input",
    "require_replaceable",
    "require_undamaged",
    "scratch_folder",
    "sealed_folder",
    "sha256_of_file",
    "sha256_of_json",
    "size_in_bytes",
    "user_cache",
]
