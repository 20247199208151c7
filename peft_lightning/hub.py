"""The model hub: adapters are fetched from it, and folders are pushed to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from peft_lightning.base_model.resolve import FILES, nearest_place
from peft_lightning.files import existing_folder
from peft_lightning.messages import UserError
from peft_lightning.process.network import hub_answers

_REPO = re.compile(
    r"[\w-][\w.-]*/[\w-][\w.-]*(@(?!.*\.\.)[\w./-]+)?"
)  # no ".." in a revision, as in git


def adapter_folder(name: str | Path) -> Path:
    """Return the folder of an adapter: the local one, or the hub's files of ``owner/name``.

    Args:
        name: A folder, or ``owner/name@REVISION``: a branch, tag or commit; without, ``main``.

    Raises:
        FileNotFoundError: If there is no such folder, and ``name`` is no repository or the hub
            cannot be reached.
        UserError: If the hub has no such adapter.
    """
    with suppress(FileNotFoundError):
        return existing_folder(name)
    if not _REPO.fullmatch(str(name)):
        return existing_folder(name)  # which says what is wrong
    repo, _, revision = str(name).partition("@")
    try:
        with _explained(f"there is no folder {name}, and the hub"):
            return Path(
                snapshot_download(
                    repo,
                    revision=revision or "main",
                    allow_patterns=[*FILES, "SHA256SUMS"],
                    local_files_only=not hub_answers(),
                )
            )
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"there is no folder {name}, and no model hub can be reached{nearest_place(Path(name))}"
        ) from None


def push_folder(folder: Path, repo: str, private: bool, revision: str | None, message: str) -> str:
    """Upload the files of ``folder`` to a repository of the hub, which is created if needed.

    Args:
        folder: The folder, all of which is uploaded.
        repo: ``owner/name``.
        private: Whether only users with access may see the repository.
        revision: Branch to push to, created if needed; ``main`` if None.
        message: The commit message.

    Returns:
        The URL of the commit.

    Raises:
        UserError: If there is no token, the hub cannot be reached, or it refuses.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo):
        raise UserError(f"a repository is OWNER/NAME, got {repo!r}")
    if get_token() is None:
        raise UserError(
            "there is no token for the hub: make one at https://huggingface.co/settings/tokens "
            "with the right to write, and give it as HF_TOKEN or to 'hf auth login'"
        )
    if not hub_answers():
        raise UserError("no model hub can be reached: nothing was uploaded")
    api = HfApi()
    with _explained(f"cannot push to {repo}: the hub"):
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise UserError(f"{repo} is there already and is public: nothing was uploaded")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message=message
        )
    return str(commit.commit_url)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise the hub's errors as a ValueError of one line that starts with ``what``."""
    try:
        yield
    except LocalEntryNotFoundError:
        raise
    except (HfHubHTTPError, HFValidationError) as error:
        reason = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{what} says: {' '.join(reason[:2])}") from error
