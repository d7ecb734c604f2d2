"""Models of the Hugging Face Hub: their snapshot is fetched, and what goes wrong there is said in one line.

Stands under `load.py`, which knows what else a name may be.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tuneful.errors import ModelError
from tuneful.model.builtin import BUILTIN
from tuneful.model.checks import Notify, first_line, quiet

HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "README.md"]
HUB_FILES_IGNORED = ["*/*", "consolidated*"]


def hub_snapshot(name: str, notify: Notify) -> Path:
    """The folder of the model `name` in the cache, fetched where it is not there. ModelError."""
    import huggingface_hub
    from huggingface_hub import errors

    notify(f"fetching {name} from the Hugging Face Hub")
    with quiet(hub_bars=sys.stderr.isatty()):
        try:
            return Path(
                huggingface_hub.snapshot_download(
                    name, allow_patterns=HUB_FILES, ignore_patterns=HUB_FILES_IGNORED, library_name="tuneful"
                )
            )
        except errors.HFValidationError as error:
            raise unknown_model(name) from error
        except errors.GatedRepoError as error:
            raise ModelError(
                f"{name} is gated: accept its terms on its Hub page, then set HF_TOKEN or run `hf auth login`"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ModelError(
                f"the Hub at {_endpoint()} knows no model {name}: check the spelling; for a private one set HF_TOKEN. "
                f"The built-in model is {BUILTIN}"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            answered = isinstance(error.__cause__, errors.HfHubHTTPError)
            raise ModelError(_unfetched(name, error.__cause__) if answered else _unreachable(name)) from error
        except Exception as error:  # any network error: the user gets one line
            raise ModelError(_unfetched(name, error)) from error


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _unfetched(name: str, error: object) -> str:
    return f"{name} could not be fetched from {_endpoint()}: {first_line(error)}. Try again, or give --model a folder"


def _unreachable(name: str) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"{name} is not in the Hub cache and HF_HUB_OFFLINE is set: unset it once, or give --model a folder"
    return (
        f"{name} is not (wholly) in the Hub cache and {constants.ENDPOINT} cannot be reached: connect once, give "
        f"--model a folder, or set HF_ENDPOINT to a mirror"
    )


def unknown_model(name: str) -> ModelError:
    """What to say of a name that is no folder, and that the Hub cannot have."""
    return ModelError(f"unknown model {name}: no such folder, and no valid Hub id (owner/name)")
