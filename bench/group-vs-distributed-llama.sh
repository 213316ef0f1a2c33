#!/usr/bin/env bash
# Our group of two ranks beside distributed-llama's two nodes, alternating, on shape S1, one core each: medians of ROUNDS rounds.
# Ours seals what it sends, theirs does not. Unattended; writes a table, and every report of ours as JSON into FOLDER.
#
#   bench/group-vs-distributed-llama.sh PHALANX DLLAMA FOLDER
#
# PHALANX is a release build of ours, DLLAMA distributed-llama's program `dllama` (`make dllama` in its public repository, outside
# of this tree), FOLDER is where models are made (about 3 GB) and kept; a folder FOLDER/FORMAT/model.gguf that is there is used.
# ROUNDS (5), FORMATS ("q4_0 q8_0"; theirs is measured at q4_0 alone), PROMPT (512) and TOKENS (48) come from the environment.
# Needs python3, and two cores at least.
set -euo pipefail

[ $# -eq 3 ] || { sed -n '2,11p' "$0"; exit 2; }
phalanx=$1 dllama=$2 folder=$3
rounds=${ROUNDS:-5} formats=${FORMATS:-q4_0 q8_0} prompt=${PROMPT:-512} tokens=${TOKENS:-48}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder/theirs"
results=$(mktemp "$folder/results.XXXXXX")
worker=
trap '[ -z "$worker" ] || kill "$worker" 2>/dev/null || true; rm -f "$results"' EXIT

for format in $formats; do
  [ -e "$folder/$format/model.gguf" ] ||
    "$phalanx" models synth --format gguf --quantisation "$format" --hidden 2048 --layers 16 --heads 32 --kv-heads 8 \
      --feed-forward 8192 --vocabulary 32000 --out "$folder/$format" >&2
done
[ -e "$folder/theirs/model.m" ] ||
  python3 "$here/distributed-llama-model.py" "$folder/theirs/model.m" "$folder/theirs/tokenizer.t" >&2
text=$(python3 -c 'import random, sys
random.seed(2)
print("".join(random.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(int(sys.argv[1]))))' "$prompt")

theirs() { # nodes
  local port workers=()
  port=$(python3 -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
  if [ "$1" -eq 2 ]; then
    taskset -c 1 "$dllama" worker --port "$port" --nthreads 1 >/dev/null 2>&1 &
    worker=$!
    workers=(--workers "127.0.0.1:$port")
    sleep 1
  fi
  taskset -c 0 "$dllama" inference --model "$folder/theirs/model.m" --tokenizer "$folder/theirs/tokenizer.t" \
    --buffer-float-type q80 --nthreads 1 --max-seq-len 2048 --temperature 0 --seed 1 --prompt "$text" \
    --steps $((prompt + tokens)) "${workers[@]}" >"$folder/theirs/log" 2>&1
  if [ -n "$worker" ]; then
    kill "$worker" 2>/dev/null || true
    wait "$worker" 2>/dev/null || true
    worker=
  fi
  python3 - "$folder/theirs/log" "$1" >>"$results" <<'PY'
import re, sys
text = open(sys.argv[1], errors="replace").read()
prefill, decode = re.findall(r"tokens/s: ([0-9.]+)", text)[-2:]
print("q4_0", "distributed-llama", sys.argv[2], decode, prefill)
PY
}

echo "load before: $(cut -d' ' -f1-3 /proc/loadavg)" >&2
for format in $formats; do
  for round in $(seq "$rounds"); do
    for mode in tensor pipeline; do
      report=$folder/group-$format-$mode-$round.json
      # A goal that was missed is told, and ends nothing: the figures are what is wanted.
      "$phalanx" bench group --model "$folder/$format/model.gguf" --ranks 2 --mode "$mode" --prompt "$prompt" --tokens "$tokens" \
        --runs 1 --json >"$report" || echo "$report: bench group said no" >&2
      [ -s "$report" ] || continue
      python3 - "$report" "$format" "$mode" >>"$results" <<'PY'
import json, sys
report = json.load(open(sys.argv[1]))
format, mode = sys.argv[2:]
single, ratio = report["single"], report["ratio"]
print(format, "ours", 1, single["decode_tokens_per_s"], single["prefill_tokens_per_s"], single["batch_tokens_per_s"])
batch = single["batch_tokens_per_s"] * ratio["batch_tokens_per_s"]
print(format, f"ours-{mode}", 2, report["decode_tokens_per_s"], report["prefill_tokens_per_s"], batch)
PY
    done
    if [ "$format" = q4_0 ]; then
      theirs 1
      theirs 2
    fi
  done
done
echo "load after: $(cut -d' ' -f1-3 /proc/loadavg)" >&2

python3 - "$results" <<'PY'
import collections, statistics, sys
runs = collections.defaultdict(list)
for line in open(sys.argv[1]):
    format, who, ranks, *numbers = line.split()
    runs[format, who, int(ranks)].append([float(number) for number in numbers])
print("| format | who | ranks | decode tokens/s | prefill tokens/s | batch tokens/s | decode, of our one rank |")
print("|---|---|---|---|---|---|---|")
medians = {key: [statistics.median(column) for column in zip(*rows)] for key, rows in runs.items()}
for (format, who, ranks), values in sorted(medians.items()):
    one = medians[format, "ours", 1][0]
    batch = f"{values[2]:.1f}" if len(values) > 2 else ""
    print(f"| {format} | {who} | {ranks} | {values[0]:.2f} | {values[1]:.1f} | {batch} | {values[0] / one:.2f} |")
PY
