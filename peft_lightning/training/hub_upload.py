"""HubUpload: adapters are pushed to the model hub while training goes on."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.files import sealed_folder
from peft_lightning.hub import name_base, push_folder, require_pushable, uploaded_files


class HubUpload:
    """Uploads an adapter in a thread; neither its time nor its errors reach the training.

    While one upload is under way, only the newest adapter waits. One that has failed is said, and
    the next checkpoint is tried again; at the end of the run, the last one.

    Args:
        repo: ``OWNER/NAME`` or ``OWNER/NAME@BRANCH``; created as a private one.
        base_model: The base as it is named, which has to be a hub id.

    Raises:
        UserError: If nothing could be pushed: no token, no such name, a base that nobody else has.
    """

    def __init__(self, repo: str, base_model: str) -> None:
        self.repo, _, self.revision = repo.partition("@")
        require_pushable(self.repo, base_model)
        self._waiting: tuple[Path, str] | None = None
        self._failed: tuple[Path, str] | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="peft_lightning_push_"))
        self._count = 0

    def push(self, checkpoint: Path, message: str) -> None:
        """Copy the files of an adapter, a few MB, and begin to upload them."""
        try:
            self._count += 1
            copied = self._folder / str(self._count)
            with sealed_folder(copied) as folder:
                for file in uploaded_files(checkpoint):
                    shutil.copyfile(file, folder / file.name)
                name_base(folder, None)
        except (OSError, ValueError) as error:
            rank_zero_info(f"not pushed to {self.repo}: {error}")
            return
        with self._lock:
            self._waiting, self._failed = (copied, message), None
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def finish(self) -> None:
        """Wait for what is under way, and try once more what has failed."""
        self._join()
        if self._failed is not None:
            with self._lock:
                self._waiting, self._failed = self._failed, None
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
            self._join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _join(self) -> None:
        thread = self._thread
        if thread is not None:
            rank_zero_info(f"waiting for the upload to {self.repo}")
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                task, self._waiting = self._waiting, None
                if task is None:
                    self._thread = None
                    return
            folder, message = task
            try:
                url = push_folder(folder, self.repo, True, self.revision or None, message)
                rank_zero_info(f"pushed: {url}")
                self._failed = None
            except Exception as error:  # whatever a network does; training goes on
                rank_zero_info(f"not pushed to {self.repo}: {error}; tried again with the next one")
                self._failed = task
