"""Starts the real program for the official clients, on a free port, with a data folder of its own."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import threading

import openai
import pytest

PATIENCE_S = 120


@contextlib.contextmanager
def fleet(folder: pathlib.Path, *arguments: str):
    """A `phalanx up` that serves; asked to end, and waited for, at the end."""
    ready = folder / "ready.json"
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                os.environ["PHALANX"],
                "up",
                "--listen",
                "127.0.0.1:0",
                "--data",
                str(folder / "data"),
                "--ready-file",
                str(ready),
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            pause = threading.Event()
            for _ in range(PATIENCE_S * 20):
                if ready.exists():
                    break
                assert process.poll() is None, f"ended before it was ready:\n{log.read_text()}"
                pause.wait(0.05)
            else:
                raise AssertionError(f"not ready after {PATIENCE_S} s:\n{log.read_text()}")
            yield json.loads(ready.read_text())
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert process.returncode == 0, f"ended with {process.returncode}:\n{log.read_text()}"


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """One fleet for all tests that do not overload it."""
    with fleet(tmp_path_factory.mktemp("fleet")) as ready:
        yield ready


FIXTURE = pathlib.Path(__file__).resolve().parents[3] / "crates/engine/tests/fixtures/embedding/qwen3-last"


@pytest.fixture(scope="session")
def embedder(tmp_path_factory):
    """A fleet with a model that gives embeddings, computed as the reference computes."""
    arguments = ("--model", f"embed={FIXTURE}", "--mode", "single", "--providers", "1", "--activations", "f32")
    with fleet(tmp_path_factory.mktemp("embedder"), *arguments) as ready:
        yield ready


@pytest.fixture
def client(served):
    """The official client, with nothing changed but base URL and key."""
    return openai.OpenAI(base_url=f"{served['url']}/v1", api_key=served["key"], max_retries=0)


@pytest.fixture
def model(client):
    """The first served model's name."""
    return client.models.list().data[0].id
