#!/usr/bin/env bash
# What takes long to prove of the Ascend kernels: every kernel of the matrix compiled, every defect that can be planted in
# nine of them caught or shown to change nothing, and the page of figures as it would be written now. The outcome depends
# on nothing but the files and programs below, so a proof holds for as long as their digest is the one recorded with it:
# --if-changed runs nothing then. A proof that succeeds here is recorded, to be committed with what it proves.
set -euo pipefail
cd "$(dirname "$0")/.."
record=.ci/ascend_proven

digest=$({
  git ls-files -z kernels ':!kernels/cpu' tools/ascend 'tests/support/ascend_*.py' 'tests/**conftest.py' \
    tests/kernels/test_ascend_{mutants,compile}.py docs/ascend-kernel.md tools/prove_ascend.sh | xargs -0 sha256sum
  .venv/bin/python -V
  .venv/bin/python -m pip --disable-pip-version-check list --format freeze |
    grep -E '^(ascendnpu-ir|numpy|torch|torch[-_]npu|triton-ascend)=='
  dpkg-query -W llvm-19 clang-19 mlir-19-tools
} | sha256sum | cut -d ' ' -f 1)
if [ "${1-}" = --if-changed ] && [ "$digest" = "$(cat "$record" 2>/dev/null)" ]; then
  echo "the Ascend kernels, and what proves them, are those that were proved: ${digest:0:12} ($record)"
  exit
fi
.venv/bin/pytest -q -n 2 --dist worksteal -m soak --timeout 3000 tests/kernels/test_ascend_{mutants,compile}.py
.venv/bin/python -m tools.ascend.report --check
echo "$digest" >"$record"
