"""What computes the frozen networks: PyTorch, or OpenVINO where it is installed; in float32 or bfloat16.

engine = OpenVINOEngine(module, (pixels,))  # converted and compiled for inputs of these shapes, once
rows = engine.start(pixels)()               # what module(pixels) gives, up to rounding
"""

import contextlib
import functools
import importlib
import importlib.util
import io
import logging
import queue
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from features.blocks import AUTO, BFLOAT16, FLOAT32, OPENVINO, TORCH
from features.device import default_device
from utils import BadInput, log

MEASURED_SECONDS = 0.5  # at least, of each engine
AGREEMENT = {FLOAT32: 0.9999, BFLOAT16: 0.999}  # smallest cosine to PyTorch's float32 with which an engine is used
NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # what processors call their instructions for it
Batch = TypeVar("Batch")


class Engine(Protocol):
    """Computes a network. name: TORCH or OPENVINO. ahead: batches to be started before the first one is waited for."""

    name: str
    precision: str
    ahead: int

    def start(self, *inputs: Tensor) -> Callable[[], Tensor]:
        """Begin with a batch; what is returned waits for it, and gives its rows."""


class TorchEngine:
    """PyTorch as it is: computes at once, with all its threads, on the GPU if the module is there."""

    name, ahead = TORCH, 0

    def __init__(self, module: Callable[..., Tensor], precision: str = FLOAT32):
        check_precision(TORCH, precision)
        self.module, self.precision = module, precision

    @torch.inference_mode()
    def start(self, *inputs: Tensor) -> Callable[[], Tensor]:
        with torch.autocast(default_device().type, torch.bfloat16, enabled=self.precision == BFLOAT16):
            rows = self.module(*inputs).float()
        return lambda: rows


class OpenVINOEngine:
    """OpenVINO on the processor: a batch on each core at the same time, beside the program that feeds it.

    module: tensors → rows, on the CPU. example: its inputs; their shapes are what it is compiled for, but for the sizes
    that dynamic_shapes leave open (those of torch.export).
    Raises BadInput if the package is missing, or cannot convert the network.
    """

    name = OPENVINO

    def __init__(
        self, module: nn.Module, example: tuple[Tensor, ...], precision: str = FLOAT32, dynamic_shapes: Any = None
    ):
        openvino = import_openvino()
        check_precision(OPENVINO, precision)
        options = {
            "INFERENCE_PRECISION_HINT": {FLOAT32: "f32", BFLOAT16: "bf16"}[precision],
            "PERFORMANCE_HINT": "THROUGHPUT",  # a stream a core: no core waits for another within a batch
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        try:
            with _silent(), torch.no_grad():
                program = torch.export.export(module, example, dynamic_shapes=dynamic_shapes)
                compiled = _core().compile_model(openvino.convert_model(program), "CPU", options)
        except Exception as error:  # what cannot be exported or converted fails in as many ways as there are networks
            lines = [line.strip("- .:") for line in str(error).splitlines()] or [type(error).__name__]
            reason = next((line for line in lines if line.startswith("No conversion rule")), lines[0])[:120]
            raise BadInput(
                f"`engine` openvino: this network cannot be converted ({reason}); leave `engine` out, or take torch"
            ) from error
        self.precision = precision
        streams = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self.ahead = streams + 1  # one waits, so that a core that is done goes on
        self.requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            self.requests.put(compiled.create_infer_request())
        self.threads = ThreadPoolExecutor(streams)

    def start(self, *inputs: Tensor) -> Callable[[], Tensor]:
        return self.threads.submit(self._infer, [tensor.contiguous().numpy() for tensor in inputs]).result

    def _infer(self, arrays: list[Any]) -> Tensor:
        request = self.requests.get()
        try:
            return torch.from_numpy(request.infer(arrays, share_inputs=True)[0])
        finally:
            self.requests.put(request)


def run_ahead(
    start: Callable[[Batch], Callable[[], Tensor]], batches: Iterable[Batch], ahead: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield each batch in turn with its rows, while up to `ahead` later ones are under way.

    >>> list(run_ahead(lambda batch: lambda: 2 * batch, [1, 2, 3], ahead=2))
    [(1, 2), (2, 4), (3, 6)]
    """
    waiting: deque[tuple[Batch, Callable[[], Tensor]]] = deque()
    for batch in batches:
        waiting.append((batch, start(batch)))
        if len(waiting) > ahead:
            done, wait = waiting.popleft()
            yield done, wait()
    for done, wait in waiting:
        yield done, wait()


def choose_engine(
    engine: str,
    precision: str,
    module: Callable[..., Tensor],
    convert: Callable[[], tuple[Engine, tuple[Tensor, ...]]],
    what: str,
    unit: str,
) -> Engine:
    """Return the engine asked for; of AUTO the quicker one, by a short measurement.

    module: for PyTorch. convert: makes OpenVINO of it, and a batch that both are compared on. what, unit: of the line
    that says what was measured. Raises BadInput if an engine that is named cannot be taken, or its rows differ.
    """
    torch_engine = TorchEngine(module, precision)
    if engine == TORCH or (engine == AUTO and not (is_installed() and default_device().type == "cpu")):
        return torch_engine
    try:
        other, inputs = convert()
        _check_agreement(module, other, inputs)
    except BadInput as error:
        if engine == OPENVINO:
            raise
        log(f"{what}: engine torch; {error}")
        return torch_engine
    if engine == OPENVINO:
        return other
    rates = {one: measure(one, inputs) for one in (torch_engine, other)}
    best = max(rates, key=rates.__getitem__)
    said = ", ".join(f"{one.name} {rate:.3g}" for one, rate in rates.items())
    log(f"{what}: engine {best.name}, as measured ({said} {unit}/s)")
    return best


def measure(engine: Engine, inputs: tuple[Tensor, ...]) -> float:
    """Return how many rows a second an engine computes, over MEASURED_SECONDS and a batch a stream at least."""
    began, rows = time.perf_counter(), 0
    while time.perf_counter() - began < MEASURED_SECONDS:
        batches = [inputs] * max(1, engine.ahead - 1)
        rows += sum(len(done) for _, done in run_ahead(lambda batch: engine.start(*batch), batches, engine.ahead))
    return rows / (time.perf_counter() - began)


def _check_agreement(module: Callable[..., Tensor], engine: Engine, inputs: tuple[Tensor, ...]) -> None:
    """Compare two rows with PyTorch's in float32. Raises BadInput if they differ by more than rounding."""
    with torch.inference_mode():
        expected = module(*(tensor[:2] for tensor in inputs)).float().flatten(1)
    cosine = cosines(engine.start(*inputs)()[:2].flatten(1), expected).min().item()
    if not cosine >= AGREEMENT[engine.precision]:
        raise BadInput(
            f"`engine` {engine.name}: its features are not those of torch (cosine {cosine:.5f}); leave `engine` out, "
            f"or take torch"
        )


def cosines(rows: Tensor, others: Tensor) -> Tensor:
    """Return the cosine of each row (N, D) to the same row of `others`, (N,) float64; of two rows of zeros 1.

    >>> cosines(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 0.0]])).tolist()
    [0.96, 1.0]
    """
    rows, others = rows.double(), others.double()
    lengths = rows.norm(dim=1) * others.norm(dim=1)
    both_zero = (rows == 0).all(1) & (others == 0).all(1)
    return torch.where(both_zero, 1.0, (rows * others).sum(1) / lengths.clamp(min=1e-300))


def check_precision(engine: str, precision: str) -> None:
    """Raise BadInput for bfloat16 where the machine has no instructions for it: it would be slower, and less exact."""
    if precision == BFLOAT16 and not has_bfloat16(engine):
        raise BadInput(
            "`precision` bfloat16: this machine has no instructions for it, so that it would be slower than float32; "
            "leave `precision` out"
        )


def has_bfloat16(engine: str) -> bool:
    """Return whether the device that the engine computes on has instructions for bfloat16."""
    if engine == TORCH and default_device().type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # of an older torch: nothing
    capabilities = asked()
    return any(capabilities.get(name) for name in NATIVE_BFLOAT16)


def is_installed() -> bool:
    """Return whether OpenVINO is."""
    return importlib.util.find_spec("openvino") is not None


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which would report each import and conversion to its publisher.

    Raises BadInput that names the package where it is missing.
    """
    # What an import of it finds is that it is not there, which the library takes into account.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module("openvino")
    except ImportError:
        raise BadInput("`engine` openvino: needs the package openvino; pip install openvino, or take torch") from None


@functools.cache
def _core() -> Any:
    """Return OpenVINO's Core, one for the whole life of the process.

    It holds the CPU plugin, which gives the thread that loads it another stack for its signals (sigaltstack), and frees
    that with itself, in whatever thread the last user of it ends. Without a Core that stays this was the thread of a
    request at times, and the next signal with a handler in the first thread (Ctrl-C, or the end of a process that
    decodes images) found no stack, so that the kernel ended the program: a segmentation fault outside any code.
    """
    return import_openvino().Core()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what libraries say about a conversion from the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
