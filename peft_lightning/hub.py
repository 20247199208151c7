"""The model hub: adapters are fetched from it, and folders are pushed to it."""

from __future__ import annotations

import json
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

TOKENIZER = r"tokenizer.*\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab\..*"
ADAPTER = r"adapter_config\.json|adapter_model\.safetensors|peft_lightning\.json|README\.md"
MODEL = r"config\.json|generation_config\.json|model.*\.safetensors(\.index\.json)?"
OURS = re.compile(rf"{ADAPTER}|{MODEL}|{TOKENIZER}|merges\.txt|chat_template\.jinja|LICEN[SC]E.*")
STATE = "trainer_state.pt"

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
    require_pushable(repo)
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


def require_pushable(repo: str, base_model: str | None = None) -> None:
    """Raise UserError if nothing can be pushed to a repository, as far as can be told offline.

    Args:
        repo: ``OWNER/NAME``.
        base_model: The base that the adapter's files will name; None if that is seen to elsewhere.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo):
        raise UserError(f"a repository is OWNER/NAME, got {repo!r}")
    if get_token() is None:
        raise UserError(
            "there is no token for the hub: make one at https://huggingface.co/settings/tokens "
            "with the right to write, and give it as HF_TOKEN or to 'hf auth login'"
        )
    if base_model is not None and not is_hub_id(base_model):
        raise UserError(
            f"push_to_hub needs a base that others have, and {base_model} is a local path: train "
            "on its hub id, or push at the end, python -m peft_lightning push --base_model ID"
        )


def is_hub_id(name: str) -> bool:
    """Whether the name of a base is that of a repository, and not of a local folder."""
    known = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name)
    return known is not None and not Path(name).exists()


def uploaded_files(folder: Path, trainer_state: bool = False) -> list[Path]:
    """Return the files of an adapter's folder that others need.

    Args:
        folder: Of an adapter, a checkpoint or a model.
        trainer_state: Whether what an exact resume needs is among them.

    Raises:
        UserError: If one is a link that leads out of the folder.
    """
    files = sorted(path for path in folder.iterdir())
    wanted = [p for p in files if OURS.fullmatch(p.name) or (trainer_state and p.name == STATE)]
    for path in wanted:
        if (target := path.resolve()).parent != folder.resolve():
            raise UserError(
                f"{path} leads out of its folder, to {target}: put the file itself there"
            )
    return wanted


def name_base(folder: Path, base_model: str | None) -> None:
    """Replace a local base model in the adapter's files by its hub id.

    Raises:
        UserError: If they name a local folder and no hub id was given.
    """
    for file, key in (
        ("adapter_config.json", "base_model_name_or_path"),
        ("adapter_config.json", "tokenizer_name_or_path"),
        ("peft_lightning.json", "base_model"),
    ):
        path = folder / file
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not (name := content.get(key)):
            continue
        if base_model is None and not is_hub_id(name):
            raise UserError(
                f"the adapter's base is a local path, {name}, which nobody else has: give its hub "
                "id with --base_model"
            )
        content[key] = base_model or name
        path.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


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
