#!/bin/sh
# Everything that needs a real card, from one built executable; no toolchain, no network.
#
#   sh benches/gpu-tier.sh TRITTER [quick|full] [FOLDER]
#
# Checks every kernel in every variant on CUDA and on wgpu, recomputes the golden files, measures
# kernels, decoding, training and start, and, where compute-sanitizer is there, runs the small cases
# under it. Writes FOLDER/<card>-<date>.json (benches/results by default) and the logs of failed steps
# beside it. A step that fails does not stop the others; the exit code is the number of failed steps.
set -u
tritter=${1:?usage: gpu-tier.sh TRITTER [quick|full] [FOLDER]}
depth=${2:-full}
folder=${3:-benches/results}
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$folder"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# A text as a JSON string.
quote() {
    printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)
day=$(date -u +%Y-%m-%d)
name=$(printf '%s' "${card:-unknown}" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-')
result="$folder/$name-$day.json"
failed=0
steps=""
summary=""

# step NAME SECONDS COMMAND...: standard output is one JSON object, or nothing worth keeping.
step() {
    label=$1 limit=$2
    shift 2
    begin=$(date +%s%3N)
    timeout "$limit" "$@" >"$scratch/out" 2>"$scratch/err"
    code=$?
    took=$(($(date +%s%3N) - begin))
    report=null
    if [ "$(head -c 1 "$scratch/out")" = "{" ] && [ "$(tail -c 2 "$scratch/out" | head -c 1)" = "}" ]; then
        report=$(cat "$scratch/out")
    fi
    if [ "$code" -ne 0 ]; then
        failed=$((failed + 1))
        cat "$scratch/out" "$scratch/err" >"$folder/$name-$label.log"
    fi
    steps="$steps${steps:+,}
{\"step\": $(quote "$label"), \"command\": $(quote "$*"), \"exit\": $code, \"milliseconds\": $took, \"report\": $report}"
    summary="$summary
$(printf '%-34s exit %3d %8d ms' "$label" "$code" "$took")"
}

# Something that this machine cannot run, and why.
not_run() {
    steps="$steps${steps:+,}
{\"step\": $(quote "$1"), \"not_run\": $(quote "$2")}"
    summary="$summary
$(printf '%-34s not run: %s' "$1" "$2")"
}

step devices 120 "$tritter" devices --json
for device in cuda wgpu; do
    if ! "$tritter" check --row fill --device "$device" --replays 0 >/dev/null 2>"$scratch/err"; then
        not_run "$device" "$(tail -n 1 "$scratch/err")"
        continue
    fi
    step "check-$device" 240 "$tritter" check --device "$device" --json
    for golden in "$here"/tests/fixtures/*/; do
        [ -e "$golden/golden.json" ] || [ -e "$golden/golden.safetensors" ] || continue
        step "validate-$(basename "$golden")-$device" 60 "$tritter" validate "$golden" --device "$device" --json
    done
    [ "$depth" = full ] || continue
    step "kernels-$device" 240 "$tritter" bench kernels --device "$device" --json
    for precision in f32 bf16; do
        step "train-125M-dense-$precision-$device" 120 "$tritter" bench train 125M --arch llama --vocab 32000 \
            --batch 8 --context 1024 --precision "$precision" --device "$device" --json
        step "train-125M-ternary-$precision-$device" 120 "$tritter" bench train 125M --vocab 32000 \
            --batch 8 --context 1024 --precision "$precision" --device "$device" --json
    done
    step "decode-125M-$device" 120 "$tritter" bench decode 125M --vocab 32000 --device "$device" --json
    step "decode-2B4T-$device" 240 "$tritter" bench decode bitnet-2b4t --device "$device" --json
    # Long contexts: a real prefill under the budget of a 16 GB card, cache types against each other, a window at
    # two positions, and layers that come from the host.
    step "context-128K-prefill-$device" 600 "$tritter" bench decode 7B --head i8 --kv int4 --prompt 128K -n 64 \
        --repeats 1 --memory-limit 12.6GB --device "$device" --json
    for kv in f16 int8 int4 int2; do
        for fill in 32k 128000; do
            step "context-$fill-$kv-$device" 240 "$tritter" bench decode 7B --head i8 --kv "$kv" --fill "$fill" \
                --prompt 0 -n 64 --repeats 3 --device "$device" --json
        done
    done
    for fill in 8k 1000k; do
        step "window-4096-at-$fill-$device" 240 "$tritter" bench decode 1B --head i8 --kv f16 --window 4096 \
            --fill "$fill" --prompt 0 -n 64 --repeats 3 --device "$device" --json
    done
    step "stream-13B-$device" 300 "$tritter" bench decode 13B --head i8 --kv int4 --prompt 0 -n 16 --repeats 3 \
        --stream --memory-limit 2GB --device "$device" --json
    step "demo-$device" 180 "$tritter" demo --device "$device" --json
done
# From the start of the process to the first token, with a model of 125M parameters on disk: first with an
# empty cache folder, then again.
if [ "$depth" = full ]; then
    start="$scratch/start"
    "$tritter" tokenizer train "$here/README.md" "$here/ARCHITECTURE.md" -o "$scratch/tok.json" --vocab 1024 \
        >/dev/null 2>&1
    "$tritter" train --data "$here/README.md" "$here/ARCHITECTURE.md" --preset 125M --tokenizer "$scratch/tok.json" \
        --out "$start" --steps 1 --batch 1 --context 64 >/dev/null 2>&1
    for round in first again; do
        for device in cuda wgpu cpu; do
            step "first-token-$device-$round" 120 env XDG_CACHE_HOME="$scratch/cache" "$tritter" generate "$start" "The" \
                -n 1 --device "$device" --json
        done
    done
    step yardstick-cublas 120 "$tritter" bench yardstick --device cuda --json
fi
if command -v compute-sanitizer >/dev/null 2>&1; then
    for tool in memcheck racecheck; do
        step "sanitizer-$tool" 600 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$tritter" check --device cuda --replays 2 --json
    done
else
    not_run sanitizer "compute-sanitizer is not on this machine"
fi

cat >"$result" <<END
{"card": $(quote "${card:-unknown}"), "driver": $(quote "${driver:-unknown}"), "date": "$day",
"program": $(quote "$("$tritter" --version)"), "depth": "$depth", "failed": $failed, "steps": [$steps
]}
END
printf '%s\n\n%s failed; %s\n' "$summary" "$failed" "$result"
exit "$failed"
