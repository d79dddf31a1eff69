"""Drives OpenVINO GenAI in process; run by its own Python: MODEL_FOLDER THREADS.

Says one line when the model is loaded; then reads a line of requests, answers a line of what happened, and so on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

CACHE_GB = 3


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is no answer
    folder, threads = sys.argv[1], int(sys.argv[2])
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GB
    scheduler.max_num_batched_tokens = 2048
    scheduler.max_num_seqs = 128
    scheduler.enable_prefix_caching = True
    pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})
    print(json.dumps({"version": genai.__version__}), file=answers, flush=True)
    number = 0
    for line in sys.stdin:
        load = json.loads(line)
        print(json.dumps(run(pipeline, load, number)), file=answers, flush=True)
        number += len(load["requests"])


def run(pipeline: Any, load: dict[str, Any], first_number: int) -> dict[str, Any]:
    """Make the requests of a load, ``concurrency`` at once; times are of ``time.perf_counter``."""
    waiting = list(enumerate(load["requests"], first_number))
    waiting.reverse()
    live: list[tuple[Any, dict[str, Any]]] = []
    traces = []
    began_s = time.perf_counter()
    while waiting or live:
        while waiting and len(live) < load["concurrency"]:
            number, request = waiting.pop()
            trace: dict[str, Any] = {"began_s": time.perf_counter(), "stamps_s": [], "num_tokens": 0}
            trace["prompt_tokens"] = len(request["ids"])
            ids = ov.Tensor(np.array([request["ids"]], dtype=np.int64))
            live.append((pipeline.add_request(number, ids, generation(request["max_tokens"])), trace))
        pipeline.step()
        now_s = time.perf_counter()
        for handle, trace in list(live):
            while handle.can_read():
                trace["stamps_s"].append(now_s)
                trace["num_tokens"] += sum(len(output.generated_ids) for output in handle.read().values())
            if handle.get_status() != genai.GenerationStatus.RUNNING:
                live.remove((handle, trace))
                traces.append(trace)
    return {"wall_s": time.perf_counter() - began_s, "traces": traces}


def generation(max_tokens: int) -> Any:
    """Exactly ``max_tokens`` tokens, the likeliest each time."""
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = max_tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


if __name__ == "__main__":
    main()
