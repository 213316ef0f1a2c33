#!/usr/bin/env bash
# Our engine beside llama.cpp, alternating, on shape S1: medians of ROUNDS rounds, decode and prefill, and our part of theirs.
#
#   bench/engine-vs-llama.sh PHALANX LLAMA_BENCH FOLDER
#
# PHALANX is a release build of ours, LLAMA_BENCH llama.cpp's llama-bench (built with -DGGML_NATIVE=ON), FOLDER is where the
# models are made (about 5 GB) and kept. ROUNDS (5), THREADS ("1 2"), FORMATS ("q4_0 q8_0 q4_k bf16"), PROMPT (512) and
# TOKENS (64) come from the environment. Needs python3.
set -euo pipefail

[ $# -eq 3 ] || { sed -n '2,9p' "$0"; exit 2; }
phalanx=$1 llama=$2 folder=$3
rounds=${ROUNDS:-5} threads=${THREADS:-1 2} formats=${FORMATS:-q4_0 q8_0 q4_k bf16}
prompt=${PROMPT:-512} tokens=${TOKENS:-64}
mkdir -p "$folder"
results=$(mktemp "$folder/results.XXXXXX")
trap 'rm -f "$results"' EXIT

for format in $formats; do
  [ -e "$folder/$format/model.gguf" ] ||
    "$phalanx" models synth --format gguf --quantisation "$format" --hidden 2048 --layers 16 --heads 32 --kv-heads 8 \
      --feed-forward 8192 --vocabulary 32000 --out "$folder/$format" >&2
done

echo "load before: $(cut -d' ' -f1-3 /proc/loadavg)" >&2
for format in $formats; do
  model=$folder/$format/model.gguf
  for count in $threads; do
    for _ in $(seq "$rounds"); do
      "$phalanx" bench engine --model "$model" --threads "$count" --batch 8 --prompt "$prompt" --tokens "$tokens" --runs 1 --json |
        python3 -c 'import json, sys
report = json.load(sys.stdin)
print(*sys.argv[1:], "ours", report["decode_tokens_per_s"], report["prefill_tokens_per_s"], report["batches"][-1]["tokens_per_s"])' \
          "$format" "$count" >>"$results"
      "$llama" -m "$model" -t "$count" -p "$prompt" -n "$tokens" -r 1 -o json 2>/dev/null |
        python3 -c 'import json, sys
tests = json.load(sys.stdin)
decode = next(test["avg_ts"] for test in tests if test["n_gen"])
prefill = next(test["avg_ts"] for test in tests if test["n_prompt"])
print(*sys.argv[1:], "theirs", decode, prefill, "nan")' "$format" "$count" >>"$results"
    done
  done
done
echo "load after: $(cut -d' ' -f1-3 /proc/loadavg)" >&2

python3 - "$results" <<'PYTHON'
import collections, statistics, sys

runs = collections.defaultdict(list)
for line in open(sys.argv[1]):
    name, threads, who, *values = line.split()
    runs[name, threads, who].append([float(value) for value in values])
print("| format | threads | decode ours / llama.cpp (tok/s) | ratio | prefill ours / llama.cpp (tok/s) | ratio | our batch 8 |")
print("|---|---|---|---|---|---|---|")
for name, threads, who in sorted(runs):
    if who != "ours":
        continue
    ours = [statistics.median(column) for column in zip(*runs[name, threads, "ours"])]
    theirs = [statistics.median(column) for column in zip(*runs[name, threads, "theirs"])]
    print(f"| {name} | {threads} | {ours[0]:.1f} / {theirs[0]:.1f} | {ours[0] / theirs[0]:.2f} | "
          f"{ours[1]:.0f} / {theirs[1]:.0f} | {ours[1] / theirs[1]:.2f} | {ours[2]:.0f} ({ours[2] / ours[0]:.1f}x) |")
PYTHON
