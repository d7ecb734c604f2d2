"""An export goes to the Hugging Face Hub: one commit of its folder, to a repository that is made where there is none."""

from __future__ import annotations

from pathlib import Path

from tuneful.errors import ConfigError, ExportError
from tuneful.model.checks import first_line, quiet


def check_repository(repository: str) -> None:
    """ConfigError where `repository` is no name of one, before anything is written."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
        if "/" not in repository:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise ConfigError(f"--push {repository}: expected ORG/NAME, as on the Hub: {first_line(error)}") from None


def push_folder(folder: Path, repository: str, *, public: bool = False) -> str:
    """Upload every file of `folder` in one commit; the address of the repository. A new one is private unless `public`.

    Raises ExportError where the Hub does not take it; the folder stays as it is.
    """
    from huggingface_hub import HfApi, constants, errors

    api = HfApi(endpoint=constants.ENDPOINT, library_name="tuneful")
    try:
        with quiet():
            url = api.create_repo(repository, private=not public, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export by Tuneful")
    except (errors.HfHubHTTPError, errors.LocalTokenNotFoundError, OSError) as error:
        raise ExportError(
            f"{folder} is whole, and could not be pushed to {constants.ENDPOINT}/{repository}: {first_line(error)}. Set HF_TOKEN "
            "or run `hf auth login`, and push it again"
        ) from error
    return str(url)
