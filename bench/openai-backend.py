#!/usr/bin/env python3
"""A llama.cpp server as a machine's engine, tried end to end: not in CI, since it needs PyPI's llama-cpp-python[server].

    python bench/openai-backend.py --phalanx target/release/phalanx --python VENV/bin/python

Makes a small GGUF model, serves it with `python -m llama_cpp.server`, joins it to a coordinator through
`phalanx provider --engine openai=URL`, and looks at: a chat, a streamed chat, a client that leaves, the server's death and
its return. Says what it saw, and fails where that is not what should be.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE_S = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(url: str, body=None, key: str = "", timeout: float = 60.0):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"})
    return urllib.request.urlopen(request, timeout=timeout)


def until(what: str, check):
    deadline = time.monotonic() + PATIENCE_S
    last = None
    while time.monotonic() < deadline:
        try:
            found = check()
            if found:
                return found
        except (OSError, ValueError, KeyError, IndexError) as error:
            last = error
        time.sleep(0.1)
    raise SystemExit(f"{what} did not come within {PATIENCE_S} s ({last})")


class Trial:
    def __init__(self, options, folder: Path):
        self.options, self.folder, self.children = options, folder, []
        self.log = (folder / "log.txt").open("w")

    def start(self, *arguments: str):
        child = subprocess.Popen(list(arguments), stdout=self.log, stderr=self.log, env=os.environ | {"PHALANX_LOG": "info"})
        self.children.append(child)
        return child

    def serve(self, model: Path, port: int):
        child = self.start(self.options.python, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port),
                           "--host", "127.0.0.1", "--n_ctx", "1024", "--n_threads", "1", "--model_alias", "tiny", "--verbose", "False",
                           # Else a request that comes ends the one that is there, with nothing said.
                           "--interrupt_requests", "False")
        until("llama.cpp's server", lambda: call(f"http://127.0.0.1:{port}/v1/models", timeout=2).status == 200)
        return child

    def ready(self, name: str) -> dict:
        return until(name, lambda: json.loads((self.folder / name).read_text()))

    def run(self) -> None:
        phalanx, folder = self.options.phalanx, self.folder
        sizes = ["--hidden", "256", "--layers", "6", "--heads", "8", "--kv-heads", "4", "--feed-forward", "704", "--vocabulary", "400",
                 "--context", "1024"]
        for form in ("gguf", "safetensors"):
            kind = "q8_0" if form == "gguf" else "bf16"
            subprocess.run([phalanx, "models", "synth", "--format", form, "--quantisation", kind, *sizes, "--out", str(folder / form)],
                           check=True, stdout=self.log)
        model, port = folder / "gguf" / "model.gguf", free_port()
        server = self.serve(model, port)
        self.start(phalanx, "coordinator", "--listen", "127.0.0.1:0", "--data", str(folder / "c"), "--ready-file", str(folder / "c.json"))
        front = self.ready("c.json")
        self.start(phalanx, "provider", "--join", front["url"], "--token", front["join_token"], "--name", "llama", "--engine",
                   f"openai=http://127.0.0.1:{port}", "--kit", str(folder / "safetensors"), "--model", "mirror=tiny",
                   "--data", str(folder / "p"), "--ready-file", str(folder / "p.json"))
        url, key = front["url"], front["key"]
        eligible = lambda: json.load(call(f"{url}/api/status", key=key))["models"][0]["eligible"][0]
        until("the machine", lambda: eligible() == 1)
        print("joined:", json.load(call(f"{url}/v1/models", key=key))["data"][0]["id"])

        body = {"model": "mirror", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16, "temperature": 0}
        said = json.load(call(f"{url}/v1/chat/completions", body, key))
        text, usage = said["choices"][0]["message"]["content"], said["usage"]
        print("chat:", repr(text)[:80], said["choices"][0]["finish_reason"], usage)
        assert text and 0 < usage["completion_tokens"] <= 16

        pieces = []
        for line in call(f"{url}/v1/chat/completions", body | {"stream": True}, key):
            line = line.decode().strip()
            if line.startswith("data: {"):
                delta = json.loads(line[6:])["choices"]
                pieces += [delta[0]["delta"].get("content") or ""] if delta else []
        print("streamed:", sum(map(bool, pieces)), "pieces, the same text:", "".join(pieces) == text)
        assert "".join(pieces) == text and sum(map(bool, pieces)) > 1

        running = lambda: json.load(call(f"{url}/api/status", key=key))["models"][0]["running"]
        stream = call(f"{url}/v1/chat/completions", body | {"stream": True, "max_tokens": 900}, key)
        until("a piece", lambda: stream.readline().startswith(b"data: {"))
        stream.close()
        begun = time.monotonic()
        until("the cancellation", lambda: running() == 0)
        after = json.load(call(f"{url}/v1/chat/completions", body, key))["choices"][0]["message"]["content"]
        print(f"a client left: at rest after {time.monotonic() - begun:.1f} s, and the next answer is the same: {after == text}")
        assert after == text

        server.kill()
        server.wait()
        begun = time.monotonic()
        until("the loss", lambda: eligible() == 0)
        print(f"the server died: noticed after {time.monotonic() - begun:.1f} s")
        # What is asked meanwhile waits for a machine, and is answered by the one that comes back.
        waiting = []
        asked = threading.Thread(target=lambda: waiting.append(self.outcome(url, body, key)))
        asked.start()
        self.serve(model, port)
        begun = time.monotonic()
        until("the return", lambda: eligible() == 1)
        again = json.load(call(f"{url}/v1/chat/completions", body, key))["choices"][0]["message"]["content"]
        print(f"the server is back: taken up after {time.monotonic() - begun:.1f} s, the same answer: {again == text}")
        asked.join(PATIENCE_S)
        print("what was asked meanwhile:", waiting)
        assert again == text and waiting in ([(200, text)], [(503, None)])

    def outcome(self, url: str, body: dict, key: str) -> tuple:
        try:
            answer = call(f"{url}/v1/chat/completions", body, key, timeout=PATIENCE_S)
            return 200, json.load(answer)["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            return error.code, None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phalanx", required=True)
    parser.add_argument("--python", default=sys.executable, help="one that has llama_cpp.server")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        trial = Trial(options, Path(place))
        try:
            trial.run()
        except BaseException:
            print((Path(place) / "log.txt").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            for child in reversed(trial.children):
                if child.poll() is None:
                    child.terminate()
            for child in trial.children:
                try:
                    child.wait(20)
                except subprocess.TimeoutExpired:
                    child.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
