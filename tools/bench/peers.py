"""The peers, and how each is found and started.

A folder of peers (``--peers``, or UPWELL_BENCH_PEERS) may hold ``xllamacpp``, ``openvino``, ``vllm`` and
``transformers``, each a virtual environment, a ``llama-server``, and their models under ``models``;
docs/benchmarking.md says how to fill it. All are started with the same number of threads.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kernels.cpu.threads import one_of_each_core
from tools.bench.systems import Command, HttpServer, InProcess, Plan, Running, System

HERE = Path(__file__).parent
MANY_SLOTS, MANY_CONTEXT = 64, 64 * 384
"""Slots of llama.cpp's server, and the tokens of context that they divide."""
FEW_SLOTS, FEW_CONTEXT = 8, 8 * 5120
_BFLOAT16 = ("--dtype", "bfloat16")


@dataclass(frozen=True)
class PeerSettings:
    """Where to look.

    Attributes:
        gguf: the model that Upwell serves, if it is such a file.
        folder: the folder of peers, if there is one.
        llama_server: a program that was named by hand.
    """

    gguf: Path | None
    folder: Path | None
    llama_server: str | None
    threads: int
    logs: Path

    def inside(self, *parts: str) -> Path | None:
        """A path in the folder of peers, if it is there."""
        path = self.folder.joinpath(*parts) if self.folder else None
        return path if path is not None and path.exists() else None

    def models(self, pattern: str) -> list[Path]:
        """The peers' own models whose names fit."""
        return sorted((self.folder / "models").glob(pattern)) if self.folder else []


def find_peers(settings: PeerSettings) -> list[System]:
    """All peers, those that are missing too. llama.cpp inside xllamacpp stands in where its own server is missing."""
    llama = list(_llama_servers(settings))
    if all(system.missing for system in llama):
        llama += _xllamacpp(settings)
    return [*llama, *_openvino(settings), _vllm(settings), _transformers(settings)]


def _ggufs(settings: PeerSettings) -> list[tuple[str, Path]]:
    """The file as it is, and its other formats under ``models``: label -> file."""
    found = [("as stored", settings.gguf)] if settings.gguf else []
    return [*found, *((path.stem, path) for path in settings.models("*.gguf"))]


def _llama_servers(settings: PeerSettings) -> Iterator[System]:
    named = settings.llama_server or os.environ.get("LLAMA_SERVER")
    program = named or shutil.which("llama-server") or settings.inside("llama-server")
    if not program or not _ggufs(settings):
        yield _absent("llama.cpp", "no llama-server: say --llama-server, or put it on PATH")
        return
    for label, gguf in _ggufs(settings):

        def command(port: int, long_context: bool, gguf: Path = gguf) -> list[str]:
            slots, context = _slots(long_context)
            where = ["--host", "127.0.0.1", "--port", str(port), "--alias", "bench"]
            threads = ["-t", str(settings.threads), "-tb", str(settings.threads)]
            shape = ["-np", str(slots), "--no-kv-unified", "-c", str(context)]
            return [str(program), "-m", str(gguf), *where, *threads, *shape]

        yield _llama("llama.cpp", label, command, settings)


def _xllamacpp(settings: PeerSettings) -> Iterator[System]:
    python = settings.inside("xllamacpp", "bin", "python")
    if not python or not _ggufs(settings):
        yield _absent("xllamacpp", "no xllamacpp in the folder of peers")
        return
    for label, gguf in _ggufs(settings):

        def command(port: int, long_context: bool, gguf: Path = gguf) -> list[str]:
            slots, context = _slots(long_context)
            numbers = [str(number) for number in (port, slots, context, settings.threads)]
            return [str(python), str(HERE / "child_xllamacpp.py"), str(gguf), *numbers]

        yield _llama("xllamacpp", label, command, settings)


def _slots(long_context: bool) -> tuple[int, int]:
    return (FEW_SLOTS, FEW_CONTEXT) if long_context else (MANY_SLOTS, MANY_CONTEXT)


def _llama(name: str, label: str, command: Command, settings: PeerSettings) -> System:
    plan = Plan(command, "bench", ready_path="/health", probe_path="/health")
    return System(name, label, None, _starter(f"{name}-{label}", plan, settings), one_shape=False)


def _openvino(settings: PeerSettings) -> Iterator[System]:
    python = settings.inside("openvino", "bin", "python")
    models = settings.models("openvino-*")
    if not python or not models:
        yield _absent("openvino", "no openvino, or no models/openvino-*, in the folder of peers")
        return
    for model in models:
        label = model.name.removeprefix("openvino-")

        def start(long_context: bool, model: Path = model, label: str = label) -> Running:
            child = [str(python), str(HERE / "child_openvino.py"), str(model), str(settings.threads)]
            return InProcess(child, settings.logs / f"openvino-{label}.log")

        yield System("openvino", label, None, start, http=False)


def _vllm(settings: PeerSettings) -> System:
    program, model = settings.inside("vllm", "bin", "vllm"), settings.inside("models", "hf")
    if not program or not model:
        return _absent("vllm", "no vllm, or no models/hf, in the folder of peers")

    def command(port: int, long_context: bool) -> list[str]:
        where = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "bench"]
        return [str(program), "serve", str(model), *where, *_BFLOAT16, "--max-model-len", "8192"]

    libraries = [path for name in ("libtcmalloc*.so*", "libiomp5.so") for path in program.parents[1].rglob(name)]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, processors(settings.threads))),
        "LD_PRELOAD": ":".join(map(str, libraries)),
    }
    plan = Plan(command, "bench", ready_path="/health", probe_path="/health", environment=environment)
    return System("vllm", "bf16", None, _starter("vllm", plan, settings))


def processors(threads: int) -> list[int]:
    """Where so many threads are bound to: each to a core of its own as long as there are any."""
    cores = one_of_each_core()
    return [*cores, *sorted(os.sched_getaffinity(0).difference(cores))][:threads]


def _transformers(settings: PeerSettings) -> System:
    program, model = settings.inside("transformers", "bin", "transformers"), settings.inside("models", "hf")
    if not program or not model:
        return _absent("transformers", "no transformers, or no models/hf, in the folder of peers")
    endless = endless_model(model, settings.logs / "transformers-model")

    def command(port: int, long_context: bool) -> list[str]:
        where = ["--host", "127.0.0.1", "--port", str(port)]
        return [str(program), "serve", str(endless), *where, "--continuous-batching", *_BFLOAT16, "--device", "cpu"]

    numbers = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(settings.threads))
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | numbers
    plan = Plan(command, str(endless), "/health", "/health", environment, ignore_eos=False)
    return System("transformers", "bf16", None, _starter("transformers", plan, settings))


def endless_model(model: Path, folder: Path) -> Path:
    """The same model with no token that ends a text, for a server that does not know ``ignore_eos``."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        copy = folder / path.name
        copy.unlink(missing_ok=True)
        if path.name in {"config.json", "generation_config.json"}:
            copy.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": None}))
        else:
            copy.symlink_to(path.resolve())
    return folder.resolve()


def _starter(name: str, plan: Plan, settings: PeerSettings) -> Callable[[bool], Running]:
    return lambda long_context: HttpServer(name, plan, settings.logs, long_context=long_context)


def _absent(name: str, reason: str) -> System:
    def start(long_context: bool) -> Running:
        raise NotImplementedError(name, long_context)

    return System(name, "", reason, start)
