#!/usr/bin/env bash
# What gateways add to an engine's own time: ours, LiteLLM's proxy and sglang's router, one after the other, in front of the
# same stand-in, under the same open-loop load, on the same machine.
#
#   bench/gateway-vs-peers.sh PHALANX FOLDER
#
# PHALANX is a release build of ours. FOLDER is outside the tree: the peers are installed there (PyPI) and results kept.
# RATES ("100 500"), SECONDS_EACH (10), ROUNDS (3), TOKENS (16) and PACE ("20,5") come from the environment; a gateway that
# fails at a rate is tried at no higher one. Needs python3 with venv, and nothing else that runs.
set -euo pipefail

[ $# -eq 2 ] || { sed -n '2,10p' "$0"; exit 2; }
phalanx=$(realpath "$1") folder=$2
root=$(cd "$(dirname "$0")/.." && pwd)
rates=${RATES:-100 500} each=${SECONDS_EACH:-10} rounds=${ROUNDS:-3} tokens=${TOKENS:-16} pace=${PACE:-20,5}
mkdir -p "$folder"
folder=$(realpath "$folder")
results=$(mktemp "$folder/results.XXXXXX")
started=()
end() {
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
}
trap end EXIT

if [ ! -x "$folder/venv/bin/litellm" ] || ! "$folder/venv/bin/python" -c 'import sglang_router' 2>/dev/null; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet 'litellm[proxy]' sglang-router
fi
"$folder/venv/bin/pip" freeze | grep -iE '^(litellm|sglang)' >&2

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Waits until a chat is answered at URL for a model.
answers() {
  for _ in $(seq 240); do
    curl --silent --fail --max-time 5 --output /dev/null "$1/v1/chat/completions" -H 'Authorization: Bearer sk-none' \
      -H 'Content-Type: application/json' \
      -d "{\"model\":\"$2\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"max_tokens\":1}" && return 0
    sleep 0.5
  done
  echo "$1 does not answer; see $folder" >&2
  return 1
}

"$phalanx" bench stand-in --pace "$pace" >"$folder/stand-in.txt" 2>"$folder/stand-in.log" &
started+=($!)
for _ in $(seq 100); do [ -s "$folder/stand-in.txt" ] && break; sleep 0.1; done
upstream=$(head -1 "$folder/stand-in.txt")
answers "$upstream" stand-in

litellm_port=$(free_port)
cat >"$folder/litellm.yaml" <<YAML
model_list:
  - model_name: stand-in
    litellm_params: {model: openai/stand-in, api_base: "$upstream/v1", api_key: none}
YAML
# On the loopback alone, and only while this runs: it needs no key.
LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY=true "$folder/venv/bin/litellm" --config "$folder/litellm.yaml" --host 127.0.0.1 --port "$litellm_port" --num_workers 1 \
  >"$folder/litellm.log" 2>&1 &
started+=($!)
sglang_port=$(free_port)
"$folder/venv/bin/python" -m sglang_router.launch_router --worker-urls "$upstream" --policy round_robin \
  --host 127.0.0.1 --port "$sglang_port" --prometheus-port "$(free_port)" >"$folder/sglang.log" 2>&1 &
started+=($!)

common=(--seconds "$each" --tokens "$tokens" --pace "$pace" --saturation 0 --sessions 0 --json)
measure() { # NAME RATE ARGUMENTS...
  local name=$1 rate=$2
  shift 2
  "$phalanx" bench gateway --rates "$rate" "${common[@]}" "$@" 2>"$folder/$name.bench.log" >"$folder/$name.json" || true
  python3 - "$name" "$folder/$name.json" "$results" <<'PYTHON'
import json, sys

name, path, results = sys.argv[1:]
try:
    rows = json.load(open(path))["rows"]
except (OSError, ValueError, KeyError):
    sys.exit(f"{name} could not be measured: see {path} and its log")
with open(results, "a") as out:
    for row in rows:
        print(name, row["rate_rps"], row["streaming"], row["overhead_p50_us"], row["overhead_p99_us"],
              row["errors"], row["requests"], file=out)
sys.exit(any(row["errors"] for row in rows))
PYTHON
}

answers "http://127.0.0.1:$litellm_port" stand-in
answers "http://127.0.0.1:$sglang_port" stand-in
echo "load before: $(cut -d' ' -f1-3 /proc/loadavg)" >&2
declare -A failed=()
for rate in $rates; do
  for _ in $(seq "$rounds"); do
    for name in nothing phalanx phalanx-http sglang-router litellm; do
      [ -z "${failed[$name]:-}" ] || continue
      case $name in
        nothing) where=(--url "$upstream" --model stand-in) ;;
        phalanx) where=() ;;
        phalanx-http) where=(--upstream "$upstream" --kit "$root/models/bundled") ;;
        sglang-router) where=(--url "http://127.0.0.1:$sglang_port" --model stand-in) ;;
        litellm) where=(--url "http://127.0.0.1:$litellm_port" --model stand-in) ;;
      esac
      echo "$name at $rate/s" >&2
      measure "$name" "$rate" "${where[@]}" || failed[$name]=$rate
    done
  done
done
echo "load after: $(cut -d' ' -f1-3 /proc/loadavg)" >&2
for name in "${!failed[@]}"; do echo "$name had errors at ${failed[$name]}/s" >&2; done

python3 - "$results" <<'PYTHON'
import collections, statistics, sys

what = {
    "nothing": "nothing (the client alone)", "phalanx": "Phalanx, stand-in in the provider, sealed",
    "phalanx-http": "Phalanx in front of the server, sealed", "sglang-router": "sglang-router", "litellm": "LiteLLM proxy",
}
runs = collections.defaultdict(list)
for line in open(sys.argv[1]):
    name, rate, streaming, *values = line.split()
    runs[int(rate), streaming == "True", name].append([float(value) for value in values])
print("| requests/s | answers | gateway | overhead p50 (ms) | p99 (ms) | errors |")
print("|---|---|---|---|---|---|")
for rate, streaming, name in sorted(runs, key=lambda run: (run[0], not run[1], list(what).index(run[2]))):
    p50, p99, errors, requests = (statistics.median(column) for column in zip(*runs[rate, streaming, name]))
    print(f"| {rate} | {'streamed' if streaming else 'whole'} | {what[name]} | {p50 / 1e3:.2f} | {p99 / 1e3:.2f} | "
          f"{errors:.0f} of {requests:.0f} |")
PYTHON
