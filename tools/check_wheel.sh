#!/usr/bin/env bash
# Build the wheel, install it into a fresh virtual environment away from the source tree, and ask it a question.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

"$root/.venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" "$root"
"$root/.venv/bin/python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "$work"/dist/upwell-*.whl
cd "$work"
venv/bin/upwell --version
venv/bin/upwell serve smollm2-135m --port 0 2>log &
server=$!
for _ in $(seq 600); do
  url=$(sed -n 's/^Ready on \(http[^ ]*\).*/\1/p' log)
  [ -z "$url" ] || break
  kill -0 "$server" || { cat log; exit 1; }
  sleep 0.1
done
answer=$(venv/bin/upwell chat --url "$url" --temperature 0 "What is the capital of France? Answer in one word.")
echo "the wheel answers: $answer"
[ -n "$answer" ]
kill -INT "$server"
wait "$server"
server=""
echo "wheel: installed, served, stopped"
