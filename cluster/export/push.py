"""Uploads an exported folder to a Hugging Face repository, with huggingface_hub where it is installed.

Invariant: the token is huggingface_hub's own business (HF_TOKEN, or its login); nothing here reads, prints or stores
it.
"""

from pathlib import Path

from configs.errors import one_line
from learner.exported import REPOSITORY

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def check_login(repo_id: str) -> None:
    """ValueError, before anything is written, for a name that is none, without huggingface_hub, and without login."""
    if not REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"--push: got {repo_id!r}, wanted owner/name")
    try:
        from huggingface_hub import get_token
    except ModuleNotFoundError:
        raise ValueError("--push: needs huggingface_hub: pip install huggingface_hub") from None
    if not get_token():
        raise ValueError(f"--push: there is no login to Hugging Face: {LOGIN}")


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Make the repository if it is new, and upload the folder as one commit; where it is. Raises ValueError; the folder
    stays."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message="Exported by delphi")
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = f": {LOGIN} with a token that may write there" if status in (401, 403) else ""
        raise ValueError(f"--push: {repo_id} refused the upload ({status}){advice}; {folder} is kept") from None
    except Exception as error:  # of the network, offline mode, the disk
        raise ValueError(f"--push: {repo_id} could not be reached: {one_line(error, 300)}; {folder} is kept") from None
    return str(url)
