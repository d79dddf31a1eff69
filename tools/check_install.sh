#!/usr/bin/env bash
# Install Upwell as people do, and ask it a question: `make serve` in a fresh clone, again without a network, with a
# model of one's own; a built wheel in a fresh virtual environment; and one that was built without a compiler, which is
# also held to the tests of kernels, engine and unit. (Those of the server run no kernels.)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
server=""
trap '[ -z "$server" ] || kill -KILL -- "-$server" 2>/dev/null || true; rm -rf "$work"' EXIT
set -m # each server is a process group of its own

# start NAME COMMAND...: run a server and wait until it is ready; sets $url.
start() {
  local log="$work/$1.log"
  shift
  : >"$log"
  "$@" >"$log" 2>&1 &
  server=$!
  for _ in $(seq 3000); do
    url=$(sed -n 's/^Ready on \(http[^ ]*\).*/\1/p' "$log")
    [ -z "$url" ] || break
    kill -0 "$server" 2>/dev/null || { cat "$log"; exit 1; }
    sleep 0.1
  done
  grep '^Ready' "$log"
}

stop() {
  kill -INT -- "-$server"
  wait "$server" || [ $? -eq 130 ] || { echo "the server ended with an error"; exit 1; }
  server=""
}

ask() {
  local answer
  answer=$("$1" chat --url "$url" --temperature 0 --max-tokens 20 "What is the capital of France?")
  echo "  it answers: $answer"
  [ -n "$answer" ]
}

git clone --quiet "$root" "$work/clone"
cd "$work/clone"
echo "make serve, in a fresh clone:"
start fresh make serve PORT=0
grep 'backend *cpu (native' "$work/fresh.log"
ask .venv/bin/upwell
stop
echo "make serve, the second time, without a network:"
began=$(date +%s%N)
start second env PIP_NO_INDEX=1 http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 make serve PORT=0
echo "  from the command to ready: $((($(date +%s%N) - began) / 1000000)) ms"
ask .venv/bin/upwell
stop
echo "make serve MODEL=tests/golden/tiny-mistral DEVICE=reference:"
start tiny make serve PORT=0 MODEL=tests/golden/tiny-mistral DEVICE=reference ARGS="--max-model-len 256"
ask .venv/bin/upwell
stop

echo "the wheel, in a fresh virtual environment:"
cd "$work"
"$root/.venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" "$root"
"$root/.venv/bin/python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "$work"/dist/upwell-*.whl
venv/bin/upwell --version
start wheel venv/bin/upwell serve smollm2-135m --port 0
grep 'backend *cpu (native' "$work/wheel.log"
ask venv/bin/upwell
stop

echo "the wheel, built without a compiler, cmake or ninja:"
mkdir "$work/empty"
env -u UPWELL_REQUIRE_NATIVE PATH="$work/empty" CC=/bin/false CXX=/bin/false \
  "$root/.venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work/pure" "$work/clone"
"$work/venv/bin/python" -m pip install --quiet --no-deps --force-reinstall "$work"/pure/upwell-*.whl
[ -z "$(find "$work/venv/lib" -name libupwell.so)" ]
start pure venv/bin/upwell serve smollm2-135m --port 0
grep 'installed without its native library' "$work/pure.log"
ask venv/bin/upwell
stop

echo "its tests of kernels, engine and unit, with no command to be found but make:"
git clone --quiet "$root" "$work/suite"
site=$(echo "$work"/venv/lib/python3*/site-packages)
for package in kernels engine server; do # tests of the tree see the wheel's files in it
  rm -r "$work/suite/$package"
  ln -s "$site/$package" "$work/suite/$package"
done
ln -s "$(command -v make)" "$work/empty/make"
# What tests need comes from the environment of this tree; a path file finds it, but not the packages installed there as
# editable.
"$root/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  >"$site/tests.pth"
(cd suite && env -u UPWELL_REQUIRE_ASCEND PATH="$work/empty" "$work/venv/bin/python" -m pytest -n 2 --dist worksteal \
  tests/kernels tests/engine tests/unit) >"$work/tests.log" 2>&1 || { cat "$work/tests.log"; exit 1; }
grep -q 'SKIPPED.*no native library' "$work/tests.log" # or the tests have run on other packages than this wheel's
sed -n '/short test summary/,$p' "$work/tests.log"
echo "installs: all serve, and pass their tests without a compiler"
