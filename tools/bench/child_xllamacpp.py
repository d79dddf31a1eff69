"""Serves with llama.cpp as the package xllamacpp has it; run by its own Python: MODEL PORT SLOTS CONTEXT THREADS."""

from __future__ import annotations

import sys
import time

import xllamacpp


def main() -> None:
    model, (port, slots, context, threads) = sys.argv[1], map(int, sys.argv[2:])
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {"bench"}
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_parallel, params.n_ctx, params.kv_unified = slots, context, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup = True
    server = xllamacpp.Server(params)
    while server.listening_address:
        time.sleep(60)


if __name__ == "__main__":
    main()
