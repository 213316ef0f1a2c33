#!/usr/bin/env bash
# Our engine beside llama.cpp, alternating, on shape S1: medians of ROUNDS rounds of decode, prefill and a batch of eight, and
# our part of theirs.
#
#   bench/engine-vs-llama.sh PHALANX LLAMA_BENCH FOLDER
#
# PHALANX is a release build of ours, LLAMA_BENCH llama.cpp's llama-bench (built with -DGGML_NATIVE=ON); a llama-batched-bench
# beside it is used for the batch. FOLDER is where the models are made (about 6 GB) and kept. From the environment: ROUNDS (3),
# THREADS ("1 2"), FORMATS ("q4_0 q8_0 q4_k mlx4 bf16"), PROMPT (256), TOKENS (32), ISA (what ours computes with: avx2, say, where
# LLAMA_BENCH was built without AVX-512). llama.cpp reads no MLX: beside mlx4 stands its q4_1, which has a scale and a minimum
# too (for 32 weights, not 64). On bf16 weights both round activations to bf16. About four minutes a round on two cores. Needs
# python3.
set -euo pipefail

[ $# -eq 3 ] || { sed -n '2,14p' "$0"; exit 2; }
phalanx=$1 llama=$2 folder=$3
rounds=${ROUNDS:-3} threads=${THREADS:-1 2} formats=${FORMATS:-q4_0 q8_0 q4_k mlx4 bf16}
prompt=${PROMPT:-256} tokens=${TOKENS:-32}
batched=$(dirname "$llama")/llama-batched-bench
mkdir -p "$folder"
results=$(mktemp "$folder/results.XXXXXX")
trap 'rm -f "$results"' EXIT

[[ " $formats " = *" mlx4 "* ]] && peers=q4_1 || peers=
for format in $formats $peers; do
  kind=gguf
  [ "$format" = mlx4 ] && kind=mlx
  [ -e "$folder/$format" ] ||
    "$phalanx" models synth --format "$kind" --quantisation "$format" --hidden 2048 --layers 16 --heads 32 --kv-heads 8 \
      --feed-forward 8192 --vocabulary 32000 --out "$folder/$format" >&2
done

ours() {
  local model=$folder/$1
  [ -e "$model/model.gguf" ] && model=$model/model.gguf
  "$phalanx" bench engine --model "$model" --threads "$2" --batch 8 --prompt "$prompt" --tokens "$tokens" --runs 1 \
    --rounded --brief ${ISA:+--isa "$ISA"} --json |
    python3 -c 'import json, sys
report = json.load(sys.stdin)
print(*sys.argv[1:], "ours", report["decode_tokens_per_s"], report["prefill_tokens_per_s"], report["batches"][-1]["tokens_per_s"],
      report["first_token_s"], report["peak_rss_bytes"], report["decode_bandwidth_part"], report["prefill_int8_part"],
      report["prefill_f32_part"])' "$1" "$2" >>"$results"
}

theirs() {
  local of=$1
  [ "$of" = mlx4 ] && of=q4_1
  local model=$folder/$of/model.gguf
  "$llama" -m "$model" -t "$2" -p "$prompt" -n "$tokens" -r 1 -o json 2>/dev/null | python3 -c 'import json, sys
tests = json.load(sys.stdin)
print(next(test["avg_ts"] for test in tests if test["n_gen"]), next(test["avg_ts"] for test in tests if test["n_prompt"]))' \
    >"$results.two"
  local batch=nan
  if [ -x "$batched" ] && [ -z "${ISA:-}" ]; then
    batch=$("$batched" -m "$model" -t "$2" -tb "$2" -c 2048 -npp 16 -ntg "$tokens" -npl 8 --output-format jsonl 2>/dev/null |
      python3 -c 'import json, sys
print(next(json.loads(line)["speed_tg"] for line in sys.stdin if line.startswith("{")))')
  fi
  echo "$1 $2 theirs $(cat "$results.two") $batch" >>"$results"
  rm -f "$results.two"
}

echo "load before: $(cut -d' ' -f1-3 /proc/loadavg)" >&2
for round in $(seq "$rounds"); do
  for format in $formats; do
    for count in $threads; do
      echo "round $round: $format, $count threads" >&2
      ours "$format" "$count"
      theirs "$format" "$count"
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
print("| format | threads | decode, ours / llama.cpp (tok/s) | ratio | prefill | ratio | batch 8 | ratio | over batch 1 | "
      "bandwidth | int8 / f32 arithmetic | first token | memory |")
print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
median = lambda rows: [statistics.median(column) for column in zip(*rows)]
for name, threads, who in runs:
    if who != "ours":
        continue
    o, t = median(runs[name, threads, "ours"]), median(runs[name, threads, "theirs"])
    pair = lambda at, digits: f"{o[at]:.{digits}f} / {t[at]:.{digits}f} | {o[at] / t[at]:.2f}"
    print(f"| {name} | {threads} | {pair(0, 1)} | {pair(1, 0)} | {pair(2, 0)} | {o[2] / o[0]:.1f} | {o[5]:.0%} | "
          f"{o[6]:.0%} / {o[7]:.0%} | {o[3]:.1f} s | {o[4] / 1e9:.2f} GB |")
PYTHON
