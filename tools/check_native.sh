#!/usr/bin/env bash
# Build the native kernels in every way that is supported, and run every operation under every instruction set: with gcc
# and clang, under sanitizers, on a processor without vectors, and for aarch64 in an emulator. All must give the same
# numbers, to the last bit. Two builds at a time; those of an earlier run are built on.
set -euo pipefail
cd "$(dirname "$0")/.."
builds=build/check
mkdir -p "$builds"

# tool COMMAND PACKAGE: note the Debian package of a command that is not there.
missing=()
tool() { command -v "$1" >/dev/null || missing+=("$2"); }
tool cmake cmake
tool ninja ninja-build
tool g++ g++
tool clang++ clang
tool aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
tool qemu-aarch64 qemu-user
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# build NAME CMAKE-OPTION...: with warnings as errors, into $builds/NAME.
build() {
  local name=$1
  shift
  cmake -S . -B "$builds/$name" -G Ninja -DUPWELL_TESTS=ON -DUPWELL_WERROR=ON "$@"
  cmake --build "$builds/$name" -j 1
}

# run NAME PREFIX...: test_isas of a build; its result is shown, and its numbers are kept to compare.
run() {
  local name=$1 began=$SECONDS
  shift
  "$@" | tee "$builds/$name.results"
  grep -o 'fingerprint .*' "$builds/$name.results" >"$builds/$name.fingerprint"
  sed "s/^/$name: /; /fingerprint/d" "$builds/$name.results" >&3
  echo "$name: $((SECONDS - began)) s" >&3
}

plain() {
  build gcc -DCMAKE_CXX_COMPILER=g++
  # Symbols that are shared between objects could be linked from one that was compiled for another processor.
  if nm "$builds"/gcc/CMakeFiles/upwell.dir/kernels/cpu/csrc/isa_*.o | grep -E ' [VWuvw] '; then exit 1; fi
  if readelf -d "$builds/gcc/libupwell.so" | grep -F 'libstdc++'; then exit 1; fi
  run gcc "$builds/gcc/test_isas"
  if [ "$(uname -m)" = x86_64 ]; then
    run old-processor qemu-x86_64 -cpu Nehalem "$builds/gcc/test_isas" 1
  fi
}

aarch64() {
  build aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
  run aarch64 qemu-aarch64 -L /usr/aarch64-linux-gnu "$builds/aarch64/test_isas"
}

clang() {
  build clang -DCMAKE_CXX_COMPILER=clang++
  run clang "$builds/clang/test_isas"
}

memory() {
  build memory -DCMAKE_CXX_COMPILER=g++ -DUPWELL_SANITIZE=address,undefined
  run memory "$builds/memory/test_isas"
}

# The tests of kernels, whose memory is Python's and lies between the sanitizers' guards too, with few examples of each
# property; not those of the Ascend chain, which has no line of this library (and whose torch throws C++ exceptions, which
# a sanitizer that was loaded before any libstdc++ cannot pass on). What touches memory in these builds is C++ and whole
# vectors, never masks or assembler, which gcc's sanitizers do not see. First of all they must see a write past the end of
# an array, and a read by a row's last vector under every instruction set. (-s: the sanitizers' report would be lost with
# what pytest captures.)
from_python() {
  local copy="$builds/python"
  make .venv/.test
  rm -rf "$copy"
  mkdir "$copy"
  cp -r engine kernels server tests pyproject.toml "$copy"
  cp "$builds/memory/libupwell.so" "$copy/kernels/cpu/"
  guarded() {
    (cd "$copy" && env LD_PRELOAD="$(g++ -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
      ../../../.venv/bin/python "$@")
  }
  seen() {
    guarded -c "$@" 2>&1 | tee "$copy/past_the_end" || true
    grep -q 'heap-buffer-overflow' "$copy/past_the_end"
  }
  seen "$past_the_end"
  local isa
  for isa in $(guarded -c 'from kernels.cpu.library import load_library; print(load_library().isas().decode())'); do
    seen "$tail_past_the_end" "$isa"
  done
  guarded -m pytest -q -s -p no:cacheprovider --hypothesis-profile few tests/kernels \
    --ignore-glob='*/test_ascend_*' --ignore-glob='*/test_hivm_*' | tee "$copy/tests.log"
  if grep -F 'skipped' "$copy/tests.log"; then exit 1; fi # without its library, a test would be
}
past_the_end='
import numpy as np
from kernels.cpu.library import load_library
stored, panels = np.zeros(64, dtype=np.uint8), np.zeros(900, dtype=np.uint8)
load_library().pack(0, 1, 16, stored.ctypes.data, 64, panels.ctypes.data, 0)
'
tail_past_the_end='
import sys
import numpy as np
from kernels.cpu.abi import Batch, Op
from kernels.cpu.library import load_library
from kernels.cpu.lowering import one_call
library, x, best = load_library(), np.zeros(1009, dtype=np.float32), np.zeros(1, dtype=np.int32)
assert library.use(sys.argv[1].encode())
call = one_call(Op.ARGMAX, 0, x.ctypes.data, 1010, 1010, best.ctypes.data)
library.run(library.pool_new(1), call.ctypes.data, 1, Batch(num_tokens=1))
'

threads() {
  build threads -DCMAKE_CXX_COMPILER=g++ -DUPWELL_SANITIZE=thread
  run threads "$builds/threads/test_isas" 3 best
}

# lane CHECK...: one after the other; a check that fails shows its log.
lane() {
  local check status
  for check in "$@"; do
    set +e # of the group below alone: bash ignores -e in what a condition runs
    (set -e; "$check") >"$builds/$check.log" 2>&1
    status=$?
    set -e
    [ "$status" = 0 ] || { cat "$builds/$check.log" >&3; echo "$check: FAILED" >&3; return 1; }
  done
}

exec 3>&1
rm -f "$builds"/*.fingerprint
lane memory from_python &
first=$!
lane plain aarch64 clang threads
wait "$first"
[ "$(cat "$builds"/*.fingerprint | sort -u | wc -l)" = 1 ] || { grep . "$builds"/*.fingerprint; echo "the builds DIFFER"; exit 1; }
echo "native kernels: all builds and instruction sets give the same numbers"
