"""Where a run is reported besides its own files: W&B, trackio, TensorBoard and the rest of `training.report_to`.

They get every number of `metrics.jsonl`, by transformers' own callbacks. Keys come from the environment (or the file
`.env` in the working folder) and are read by the trackers alone; W&B runs offline where there is none.
"""

from __future__ import annotations

import netrc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from transformers import TrainingArguments

from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.environment import read, temporarily
from hf_arch.training.compat import INTEGRATION_TO_CALLBACK

# Trackers whose package has another name than they, or an extra of ours.
PACKAGES = {"azure_ml": "azureml", "flyte": "flytekit", "kubeflow": "kubernetes", "dagshub": "dagshub"}
EXTRAS = ("wandb", "trackio", "tensorboard")
WANDB_HOST = "api.wandb.ai"


def check_trackers(report_to: str | list[str] | None) -> None:
    """Raises `ConfigError` for a tracker that transformers does not know or that is not installed."""
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise choice_error("training.report_to", name, [*INTEGRATION_TO_CALLBACK, "all", "none"])
        package = PACKAGES.get(name, name)
        if find_spec(package) is None:
            source = f"'hf-arch[{name}]'" if name in EXTRAS else package
            raise ConfigError(
                f"training.report_to: {name!r} is not installed; pip install {source}, or nearest: 'none'"
            )


@contextmanager
def tracked(args: TrainingArguments, folder: Path, name: str) -> Iterator[None]:
    """Inside it the run has a name and a project, and trackers that write files do so into its folder, where nothing
    else has been set; the trainer has to be made and run in it. Another run of this process begins anew.
    """
    args.run_name = args.run_name or name
    if args.project == "huggingface":  # transformers' default
        args.project = "hf-arch"
    defaults = {
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"),
        "WANDB_PROJECT": args.project,
        "WANDB_DIR": str(folder),
    }
    if not has_wandb_key():
        defaults["WANDB_MODE"] = "offline"
    with temporarily(defaults):
        try:
            yield
        finally:
            if "wandb" in args.report_to and "wandb" in sys.modules:
                sys.modules["wandb"].finish()


def describe_trackers(args: TrainingArguments) -> str:
    """Who is told, for the start-up report; `wandb (offline: no key)`."""
    said = []
    for tracker in args.report_to:
        mode = read("WANDB_MODE") or "online"
        offline = tracker == "wandb" and mode != "online"
        reason = f" ({mode}{'' if has_wandb_key() else ': no key'})" if offline else ""
        said.append(f"{tracker}{reason}")
    return ", ".join(said)


def has_wandb_key() -> bool:
    """Whether W&B would find a key: in the environment, or where `wandb login` keeps it."""
    if read("WANDB_API_KEY") or read("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = (read("WANDB_BASE_URL") or f"https://{WANDB_HOST}").partition("://")[2].partition("/")[0]
    try:
        return netrc.netrc(read("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
