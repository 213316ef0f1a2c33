"""The official Node clients, where npm is there: installed outside the tree, and run against the same fleet."""

import os
import pathlib
import shutil
import subprocess

import pytest
from conftest import fleet

HERE = pathlib.Path(__file__).parent.parent / "node"
PATIENCE_S = 300


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed: Node's clients are not run")
def test_the_node_clients_work(served, tmp_path):
    folder = pathlib.Path(os.environ.get("PHALANX_NODE", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "clients.test.js"):
        shutil.copy(HERE / name, folder / name)
    install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "--ignore-scripts"]
    subprocess.run(install, cwd=folder, check=True, timeout=PATIENCE_S)
    env = {**os.environ, "PHALANX_URL": served["url"], "PHALANX_KEY": served["key"]}
    with fleet(tmp_path, "--providers", "1", "--batch-max", "1", "--set", "pool.queue_max=1") as tight:
        env |= {"PHALANX_TIGHT_URL": tight["url"], "PHALANX_TIGHT_KEY": tight["key"]}
        node = ["node", "--test", "clients.test.js"]
        done = subprocess.run(node, cwd=folder, env=env, timeout=PATIENCE_S, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
