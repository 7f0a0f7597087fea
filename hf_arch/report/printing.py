"""The page as PDF: printed by a Chromium browser that is installed, with the page's own rules for print."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_atomic

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
SECONDS = 180


def browser() -> str:
    """The path of a browser that can print. Raises ConfigError where none is installed."""
    for name in BROWSERS:
        if (path := shutil.which(name)) is not None:
            return path
    raise ConfigError(
        f"--format pdf: no browser to print the page with (looked for {', '.join(BROWSERS)}); install Chromium, "
        "or take --format latex and compile paper.tex"
    )


def print_page(page: str, path: Path) -> Path:
    """Writes the HTML `page` as PDF to `path`, whole or not at all. ConfigError where the browser fails."""
    program = browser()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "page.html", Path(folder) / "page.pdf"
        source.write_bytes(page.encode("utf-8", "backslashreplace"))
        command = [
            program, "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--no-pdf-header-footer", f"--user-data-dir={folder}/profile", f"--print-to-pdf={target}", source.as_uri(),
        ]  # fmt: skip
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.insert(1, "--no-sandbox")  # Chromium's sandbox refuses to run as root, as in a container
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"--format pdf: {program} did not print the page: {error}") from error
        content = target.read_bytes() if target.is_file() else b""
        if not content.startswith(b"%PDF"):
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ConfigError(f"--format pdf: {program} did not print the page (exit code {done.returncode}): {last}")
    return write_atomic(path, content)
