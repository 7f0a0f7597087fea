"""`hf-arch watch`: the report page of a folder on loopback, made anew as runs finish.

The page is the one of `report/page.py`; nothing is written. A browser asks again every few seconds (`Refresh`), and
gets 304 as long as no run has changed (`ETag`). Only `/` of this machine's own address is answered: a request by
another host name is refused, since a page of another site could have made the browser ask.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import threading
from collections.abc import Callable
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hf_arch import __version__
from hf_arch.analysis.compare import compare_runs
from hf_arch.core.errors import ConfigError
from hf_arch.report.page import render
from hf_arch.runs.files import CONFIG_FILE, EVALUATION_FILE, RESULTS_FILE, run_folders
from hf_arch.runs.record import read_results

HOST = "127.0.0.1"
REFRESH_SECONDS = 10
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Pages:
    """The page of a results folder and its tag; drawn again only where a run's files have changed."""

    def __init__(self, results_dir: Path) -> None:
        self.results_dir = results_dir
        self._lock = threading.Lock()
        self._seen: str | None = None
        self._page = b""

    def page(self) -> tuple[str, bytes]:
        """(tag, HTML)."""
        with self._lock:  # the figures of two requests at once would be drawn twice
            tag = self._tag()
            if tag != self._seen:
                self._page, self._seen = self._render().encode(), tag
            return tag, self._page

    def _tag(self) -> str:
        """A hash of which runs there are and of what their files were when they changed last."""
        digest = hashlib.sha256(__version__.encode())
        for folder in sorted(run_folders(self.results_dir)):
            for name in (CONFIG_FILE, RESULTS_FILE, EVALUATION_FILE):
                try:
                    stamp = (folder / name).stat()
                except OSError:
                    continue
                digest.update(f"{folder}/{name} {stamp.st_mtime_ns} {stamp.st_size}\n".encode())
        return digest.hexdigest()[:32]

    def _render(self) -> str:
        title = self.results_dir.resolve().name
        statuses = [_status(folder) for folder in run_folders(self.results_dir)]
        if "completed" in statuses:
            try:
                return render(compare_runs(self.results_dir), title)
            except ConfigError as error:  # a file of a newer version, or runs that cannot stand in one table
                return _note(title, str(error))
        running = statuses.count("running")
        return _note(
            title, f"No run has finished yet: {len(statuses)} begun, {running} running. This page refreshes by itself."
        )


def _status(folder: Path) -> str:
    try:
        record = read_results(folder)
    except ConfigError:
        return "unreadable"
    return "begun" if record is None else record.status


def _note(title: str, text: str) -> str:
    """What stands in the page's place before there is one."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="color-scheme" content="light dark"><h1>{escape(title)}</h1><p>{escape(text)}</p></html>'
    )


class ReportServer(ThreadingHTTPServer):
    """Serves the page of `results_dir` at `port` of this machine's loopback address (0: any free one).

    Raises:
        ConfigError: no such folder, or a port that is taken.
    """

    daemon_threads = True

    def __init__(self, results_dir: str | Path, port: int = 0) -> None:
        folder = Path(results_dir)
        if not folder.is_dir():
            raise ConfigError(f"results folder: {folder} does not exist or is not a folder")
        self.pages = Pages(folder)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"--port: {port} cannot be served ({error.strerror or error}); allowed: a free port, 0 for any"
            ) from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"

    def serve(self, begun: Callable[[], None] = lambda: None) -> None:
        """Answers until Ctrl-C or SIGTERM, which end it in order from the moment that `begun` is called."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            begun()
            self.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            pass
        finally:
            self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle of an answer is no error of ours; anything else is told as usual."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    server_version = "hf-arch"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host") or ""
        if host not in (HOST, "localhost"):
            self._send(HTTPStatus.MISDIRECTED_REQUEST, b"another host\n", {}, with_body)
            return
        if self.path != "/":
            self._send(HTTPStatus.NOT_FOUND, b"only / is served\n", {}, with_body)
            return
        tag, page = self.server.pages.page()
        headers = {"ETag": f'"{tag}"', "Refresh": str(REFRESH_SECONDS), "Cache-Control": "no-cache"}
        known = [part.strip().removeprefix("W/") for part in (self.headers.get("If-None-Match") or "").split(",")]
        if headers["ETag"] in known:
            self._send(HTTPStatus.NOT_MODIFIED, b"", headers, with_body)
            return
        headers |= {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": POLICY}
        self._send(HTTPStatus.OK, page, headers, with_body)

    def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("X-Content-Type-Options", "nosniff")
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body and body:
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """The terminal belongs to whoever trains in this process."""
