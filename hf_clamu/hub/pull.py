"""Bringing a saved model from the Hub, and asking whether the Hub can be reached at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_clamu.checkpoint.layout import CARD_NAME, CONFIG_NAME, DATA_SUFFIXES, SIGNATURE_NAME
from hf_clamu.errors import CheckpointFormatError, HubError
from hf_clamu.hub.errors import client_errors, is_unreachable, reason_of, translate_hub_errors
from hf_clamu.hub.repository import TIMEOUT_SECONDS

__all__ = ["download", "download_file", "is_repo_id", "place_of_repo", "require_reachable", "resolve_folder"]

# What a pull brings; the ledger decides what is a part of the model.
_SAFE_PATTERNS = (*(f"*{suffix}" for suffix in DATA_SUFFIXES), CARD_NAME, SIGNATURE_NAME)


def is_repo_id(name: str) -> bool:
    """Whether a name that is no folder here can be a Hub id: `org/name`."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def place_of_repo(repo_id: str) -> Path:
    """Return the place in the working directory that stands for a model on the Hub: what goes with it is beside it."""
    return Path(repo_id.replace("/", "--"))


def resolve_folder(name: str) -> Path:
    """Return the folder of a saved model, downloaded if the name is a Hub id."""
    return download(name)[0] if is_repo_id(name) else Path(name)


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> tuple[Path, str]:
    """Bring a saved model into the local cache; only files that cannot run code are fetched.

    The client checks sizes, not contents: `read_checkpoint` checks every digest afterwards. A Hub that cannot be
    reached is an error, not a reason to serve an older state from the cache.

    Args:
        repo_id (`str`): the repository.
        revision (`str`, *optional*): branch, tag or commit; `"main"` by default.
        token (`str` or `bool`, *optional*): by default the one that `hf auth login` saved.
        cache_dir (`str` or `Path`, *optional*): of huggingface_hub.
        local_files_only (`bool`): take what the cache holds without asking the Hub; so does `HF_HUB_OFFLINE=1`.
        force_download (`bool`): fetch files that the cache holds, too: the way out of a damaged cache.

    Returns:
        *tuple* of `Path` and `str`: the folder, and the SHA of its commit.

    Raises:
        HubError: if there is no such repository or revision, or it cannot be reached or seen with this token.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    def fetch(wanted: str | None) -> Path:
        found = snapshot_download(
            repo_id,
            revision=wanted,
            token=token,
            cache_dir=cache_dir,
            local_files_only=offline,
            force_download=force_download and not offline,
            allow_patterns=list(_SAFE_PATTERNS),
        )
        return Path(found)

    offline = local_files_only or bool(constants.HF_HUB_OFFLINE)
    with (
        _named_as_folder(repo_id),
        translate_hub_errors(
            f"load {repo_id}{f' at {revision}' if revision else ''}",
            "set HF_HUB_OFFLINE=1 to use what the cache holds",
        ),
    ):
        if offline:
            folder = fetch(revision)
            return folder, folder.name
        commit = str(HfApi(token=token).model_info(repo_id, revision=revision, timeout=TIMEOUT_SECONDS).sha)
        folder = fetch(revision)
        if folder.name != commit:
            # The branch moved on in between, or the client fell back on an older state in the cache.
            folder = fetch(commit)
        return folder, commit


def download_file(
    repo_id: str, name: str, *, revision: str | None = None, subfolder: str = "", options: Mapping[str, Any]
) -> Path | None:
    """Bring one file of a saved model into the local cache; `None` if the repository has none of that name.

    Args:
        repo_id (`str`): the repository.
        name (`str`): of the file.
        revision (`str`, *optional*): branch, tag or commit.
        subfolder (`str`): where in the repository the saved model is.
        options (*mapping*): `token`, `cache_dir` and other options of `hf_hub_download`.

    Raises:
        HubError: if it cannot be fetched, so that it is not known.
        CheckpointFormatError: if there can be no such repository.
    """
    from huggingface_hub import _CACHED_NO_EXIST, errors, hf_hub_download, try_to_load_from_cache

    try:
        found = hf_hub_download(repo_id, name, subfolder=subfolder or None, revision=revision, **options)
    except errors.LocalEntryNotFoundError as error:
        # Offline, or no answer. The cache remembers what a commit was found to lack.
        inside = f"{subfolder}/{name}" if subfolder else name
        kept = {"cache_dir": options.get("cache_dir"), "revision": revision}
        if try_to_load_from_cache(repo_id, inside, **kept) is _CACHED_NO_EXIST:
            return None
        raise HubError(f"{name} of {repo_id!r} could not be downloaded: {error}") from error
    except errors.EntryNotFoundError:
        return None
    except errors.HfHubHTTPError as error:
        raise HubError(
            f"{name} of {repo_id!r} (revision {revision or 'main'}) could not be downloaded: {error}"
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointFormatError(
            f"{repo_id!r} is neither a folder nor the id of a Hub repo, so no merged delta is there."
        ) from error
    return Path(found)


@contextmanager
def _named_as_folder(name: str) -> Iterator[None]:
    """Say that a name is no folder either where the Hub does not know it: it may be a path, seen from elsewhere."""
    from huggingface_hub import errors

    try:
        yield
    except HubError as error:
        cause = error.__cause__
        absent = (errors.RepositoryNotFoundError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
        if isinstance(cause, errors.GatedRepoError) or not (isinstance(cause, absent) or is_unreachable(cause)):
            raise
        raise HubError(f"There is no such folder here, and not found on the Hub: {name}. {error}") from cause


def require_reachable(
    name: str, *, revision: str | None = None, token: str | bool | None = None, cache_dir: str | Path | None = None
) -> None:
    """Ask the Hub once for a model that is neither here nor in the cache; loaders ask an unreachable Hub many times.

    Raises:
        HubError: if the Hub cannot be reached. Whatever else is wrong, loading says.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if Path(name).exists():
        return  # the user means what is here
    try:
        if constants.HF_HUB_OFFLINE or isinstance(
            try_to_load_from_cache(name, CONFIG_NAME, cache_dir=cache_dir, revision=revision), str
        ):
            return
        HfApi(token=token).model_info(name, revision=revision, timeout=TIMEOUT_SECONDS)
    except client_errors() as error:
        if is_unreachable(error):
            raise HubError(
                f"Cannot load {name}: there is no such folder here, it is not in the cache, and "
                f"{reason_of(error, 'give a folder that holds the model')}"
            ) from error
