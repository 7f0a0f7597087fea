"""`hf-arch watch`: the report's page, on loopback alone, anew as runs finish."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_arch.analysis.compare import compare_runs
from hf_arch.core.errors import ConfigError
from hf_arch.report.page import render
from hf_arch.report.watch import ReportServer
from tests.experiments.synthetic import write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


@pytest.fixture
def server(folder: Path) -> Iterator[ReportServer]:
    server = ReportServer(folder)
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    assert not thread.is_alive()


def ask(server: ReportServer, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def without_time(page: str) -> list[str]:
    return [line for line in page.splitlines() if "UTC" not in line and "written" not in line.lower()]


def test_the_page_follows_the_runs(server: ReportServer, folder: Path) -> None:
    status, headers, page = ask(server)
    assert status == 200 and "No run has finished yet: 0 begun" in page and headers["Refresh"] == "10"
    write_run(folder, "llama", results={"status": "running"})
    status, first, page = ask(server)
    assert "No run has finished yet: 1 begun, 1 running" in page and first["ETag"] != headers["ETag"]
    write_run(folder, "gla")
    status, headers, page = ask(server)
    assert status == 200 and headers["ETag"] != first["ETag"]
    assert without_time(page) == without_time(render(compare_runs(folder), "set"))
    assert ask(server, If_None_Match=headers["ETag"])[0] == 304
    assert ask(server, If_None_Match='"other"')[0] == 200
    status, head, body = ask(server, method="HEAD")
    assert status == 200 and body == "" and int(head["Content-Length"]) == len(page.encode())
    before = sorted(folder.rglob("*"))
    ask(server)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("path", ["/report.html", "/..", "/../set/", "/?x", "/llama/results.json", "/%2e%2e/"])
def test_nothing_else_is_served(server: ReportServer, folder: Path, path: str) -> None:
    write_run(folder, "llama")
    (folder / "report.html").write_text("secret")
    status, _, body = ask(server, path)
    assert status == 404 and "secret" not in body and "llama" not in body


def test_other_hosts_and_methods_are_refused(server: ReportServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, Host="evil.example:80")[0] == 421
    assert ask(server, Host=f"localhost:{server.server_port}")[0] == 200
    for method in ("POST", "PUT", "DELETE"):
        assert ask(server, method=method)[0] == 501


def test_a_run_that_cannot_be_read_is_said(server: ReportServer, folder: Path) -> None:
    write_run(folder, "llama")
    (folder / "bad").mkdir()
    (folder / "bad" / "results.json").write_text('{"schema_version": 999}')
    status, _, page = ask(server)
    assert status == 200 and "schema_version" in page


def test_a_wrong_folder_or_port_is_one_line(tmp_path: Path, server: ReportServer) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        ReportServer(tmp_path / "none")
    with pytest.raises(ConfigError, match=f"--port: {server.server_port}"):
        ReportServer(tmp_path, server.server_port)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly(folder: Path, sign: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_arch", "watch", str(folder), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(sign)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in err
