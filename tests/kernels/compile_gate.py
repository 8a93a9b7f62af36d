"""The machinery of the compile-only gate: kernels compiled without a GPU, and what the assembler made of them.

The launchers themselves run, on meta tensors and under a driver that only says for which GPU to compile: signatures,
tiles and flags are those of a real call. Each case has its own process, because a failed assertion in the compiler ends
the process; it is forked from one that has imported torch and Triton, so that no case pays for that.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction

TOOLS = Path(compiler.__file__).parent / "bin"


@dataclass(frozen=True)
class Target:
    """A GPU to compile for: its opt-in limit of shared memory in bytes, SASS name of its matrix products, SM count."""

    arch: int
    shared_limit: int
    tensor_core: str
    processors: int

    @property
    def name(self) -> str:
        return f"sm_{self.arch}"


# CUDA C++ programming guide, technical specifications per compute capability; SMs of A100, H100 SXM and B200. sm_80 has
# 163 KB of shared memory, but what is compiled for it also runs on sm_86 and sm_89, which have 99.
TARGETS = {
    target.name: target
    for target in (
        Target(80, 99 * 1024, "HMMA", 108),
        Target(90, 227 * 1024, "HGMMA", 132),
        Target(100, 227 * 1024, "UTC[A-Z]*MMA", 148),
    )
}


@dataclass(frozen=True)
class Case:
    """One call of a launcher: what it shows of the launch table, and the call, on meta tensors."""

    room: str
    entry: str
    features: str
    dtype: str
    run: Callable[[], object]
    targets: tuple[str, ...] = tuple(TARGETS)
    # Whether products in 16 bits must run as HGMMA on sm_90.
    hgmma: bool = True
    # Seconds after which the compiler counts as hung.
    limit: int = 120

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.room, self.entry, self.features, self.dtype) if part)


@dataclass
class Resources:
    """What one compiled kernel uses."""

    kernel: str
    registers: int
    stack: int
    shared: int
    tensor_core: int
    spills: int
    wide_loads: int
    ptxas: str
    # The stack when the newer ptxas assembles it that kernels/hopper.py may choose on sm_90.
    newer_stack: int = 0
    half_dots: int = field(default=0)
    transposed: list[str] = field(default_factory=list)


# Rules


def faults(kernels: Iterable[Resources], target: Target, hgmma: bool = True) -> list[str]:
    """Return what no shipped configuration may do, in words."""
    found = []
    for kernel in kernels:
        if kernel.stack or kernel.spills:
            found.append(f"{kernel.kernel}: {kernel.stack} bytes of stack, {kernel.spills} spill instructions")
        if kernel.newer_stack:
            found.append(f"{kernel.kernel}: {kernel.newer_stack} bytes of stack with the newer ptxas")
        if kernel.shared > target.shared_limit:
            found.append(f"{kernel.kernel}: {kernel.shared} bytes of shared memory, limit {target.shared_limit}")
        if hgmma and target.arch == 90 and kernel.half_dots and not kernel.tensor_core:
            found.append(f"{kernel.kernel}: {kernel.half_dots} products in 16 bits, none runs as HGMMA")
        if kernel.transposed:
            found.append(f"{kernel.kernel}: a transposed product goes into a product: {', '.join(kernel.transposed)}")
    return found


def transposed_products(ttir: str) -> list[str]:
    """Return the values in Triton's IR that are a transposed product and go into another product.

    Triton 3.4.0 to 3.7.0 miscompile that on Hopper, and later versions pay for it in registers and shared memory.
    """
    graph = _value_graph(ttir)

    def comes_from_product(name: str, seen: set[str]) -> bool:
        operation, operands = graph.get(name, ("", []))
        if name in seen or operation == "tt.load":
            return False
        seen.add(name)
        return operation == "tt.dot" or any(comes_from_product(operand, seen) for operand in operands)

    def transposes(name: str, seen: set[str]) -> Iterable[str]:
        operation, operands = graph.get(name, ("", []))
        if name in seen or operation in ("tt.load", "tt.dot"):
            return
        seen.add(name)
        if operation == "tt.trans":
            yield name
        for operand in operands:
            yield from transposes(operand, seen)

    found = set()
    for operation, operands in graph.values():
        if operation == "tt.dot":
            for operand in operands[:2]:
                found.update(name for name in transposes(operand, set()) if comes_from_product(name, set()))
    return sorted(found)


def _value_graph(ttir: str) -> dict[str, tuple[str, list[str]]]:
    """Return operation and operands of every value, following loops and branches."""
    value = r"%[\w$.-]+(?:#\d+)?"
    graph: dict[str, tuple[str, list[str]]] = {}
    # Of each open region, the values that a yield in it sets: the operation's results, the loop's arguments.
    regions: list[tuple[list[str], list[str]]] = []
    for line in ttir.splitlines():
        text = re.sub(r" loc\(.*", "", line.strip())
        match = re.match(r'(?:(%[\w$.-]+)(?::(\d+))? = )?"?([a-z_]+\.[\w.]+)"?(.*)', text)
        results: list[str] = []
        arguments: list[str] = []
        if match:
            name, count, operation, rest = match.groups()
            results = [f"{name}#{i}" for i in range(int(count))] if count else [name] if name else []
            for result in results:
                graph[result] = (operation, [] if operation.startswith("scf.") else re.findall(value, rest))
            if operation in ("scf.for", "scf.while"):
                for argument, start in re.findall(rf"({value}) = ({value})", rest.partition("(")[2]):
                    graph[argument] = ("argument", [start])
                    arguments.append(argument)
            if operation == "scf.yield":
                for i, operand in enumerate(re.findall(value, rest)):
                    for group in regions[-1]:
                        if i < len(group):
                            graph[group[i]][1].append(operand)
        opens, closes = line.rstrip().endswith("{"), text.startswith("}")
        if opens and not closes:
            regions.append((results, arguments))
        elif closes and not opens:
            regions.pop()
    return graph


# Compilation of one case, in its own process


class OnlyCompiles:
    """A Triton driver without a GPU: it says for which one to compile."""

    def __init__(self, target: Target):
        self.target = target

    def get_current_target(self):
        return GPUTarget("cuda", self.target.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled_kernels(run: Callable[[], object], target: Target) -> list:
    """Run a launcher for a GPU that is not there, and return the kernels that it would have launched."""
    triton.runtime.driver.set_active(OnlyCompiles(target))
    properties = SimpleNamespace(
        multi_processor_count=target.processors, major=target.arch // 10, minor=target.arch % 10
    )
    torch.cuda.get_device_properties = lambda device=None: properties
    torch.cuda.get_device_capability = lambda device=None: (properties.major, properties.minor)
    original, kernels = JITFunction.run, []

    def only_compile(self, *args, grid, warmup, **options):
        kernel = original(self, *args, grid=grid, warmup=True, **options)
        if all(kernel is not other for other in kernels):
            kernels.append(kernel)
        return kernel

    JITFunction.run = only_compile
    try:
        run()
    finally:
        JITFunction.run = original
    return kernels


def measure(kernel, target: Target) -> Resources:
    """Read a compiled kernel's resources from its binary, its assembly and its intermediate code."""
    registers, stack = _usage(kernel.asm["cubin"])
    code = _said_by("nvdisasm", kernel.asm["cubin"])
    dots = re.findall(r"tt\.dot .*: tensor<[\dx]*(\w+)> \*", kernel.asm["ttir"])
    return Resources(
        kernel=kernel.metadata.name,
        registers=registers,
        stack=stack,
        shared=kernel.metadata.shared,
        tensor_core=len(re.findall(rf"\b{target.tensor_core}\b", code)),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", code)),
        wide_loads=len(re.findall(r"ld\.global\S*\.(?:v4\.b32|v2\.b64)|cp\.async\S* .*, 0x10,", kernel.asm["ptx"])),
        ptxas=compiler.get_ptxas(target.arch).version,
        newer_stack=_usage(_assembled_by_newer(kernel))[1] if target.arch == 90 else 0,
        half_dots=sum(dtype in ("f16", "bf16") for dtype in dots),
        transposed=transposed_products(kernel.asm["ttir"]),
    )


def _usage(binary: bytes) -> tuple[int, int]:
    """Return registers per thread and bytes of stack."""
    said = _said_by("cuobjdump", binary, "-res-usage")
    used = {key: int(number) for key, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return used["REG"], used["STACK"] + used["LOCAL"]


def _said_by(tool: str, binary: bytes, *arguments: str) -> str:
    """Return what one of CUDA's tools says of a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(TOOLS / tool), *arguments, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _assembled_by_newer(kernel) -> bytes:
    """Return a kernel's binary as kernels/hopper.py may have it made."""
    target = kernel.metadata.target
    backend = make_backend(target)
    os.environ["TRITON_PTXAS_PATH"] = str(TOOLS / "ptxas-blackwell")
    try:
        return backend.make_cubin(kernel.asm["ptx"], {}, backend.parse_options({}), target.arch)
    finally:
        del os.environ["TRITON_PTXAS_PATH"]


def _start(case: Case, target: Target, path: Path) -> int:
    """Compile one case in a child of this process, and return the child's id; it writes ``path``.json and .log."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    signal.alarm(case.limit)
    log = os.open(path.with_suffix(".log"), os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        kernels = [asdict(measure(kernel, target)) for kernel in compiled_kernels(case.run, target)]
        path.with_suffix(".json").write_text(json.dumps(kernels))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# All cases


@dataclass
class Outcome:
    """What became of one case on one GPU: its kernels, or why there are none."""

    kernels: list[Resources]
    error: str
    seconds: float


def compile_all(cases: Iterable[Case], jobs: int) -> dict[str, Outcome]:
    """Compile every case for its GPUs, ``jobs`` at a time; the keys are :func:`key`."""
    outcomes, running = {}, {}
    waiting = pairs(cases)[::-1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TRITON_CACHE_DIR"] = str(folder / "cache")
        _warm_up()
        while waiting or running:
            while waiting and len(running) < jobs:
                case, target = waiting.pop()
                path = folder / str(len(waiting))
                running[_start(case, target, path)] = (case, target, path, time.monotonic())
            pid, status = os.wait()
            case, target, path, started = running.pop(pid)
            outcomes[key(case, target)] = _outcome(pid, status, path, time.monotonic() - started)
    return outcomes


def pairs(cases: Iterable[Case]) -> list[tuple[Case, Target]]:
    """Return every case with every GPU that it is compiled for."""
    return [(case, TARGETS[name]) for case in cases for name in case.targets]


def key(case: Case, target: Target) -> str:
    """Return the name of an outcome."""
    return f"{case.name} {target.name}"


def _warm_up() -> None:
    """Do once, before the forks, what is the same for each: imports, and the hash of Triton's own files."""
    import compile_toys

    for target in TARGETS.values():
        compiled_kernels(compile_toys.copy, target)


def _outcome(pid: int, status: int, path: Path, seconds: float) -> Outcome:
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        kernels = [Resources(**row) for row in json.loads(path.with_suffix(".json").read_text())]
        return Outcome(kernels, "" if kernels else "no kernel was launched", seconds)
    if code < 0:
        try:
            # An assembler that it started may still run.
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    why = f"ended by {signal.Signals(-code).name} after {seconds:.0f} s" if code < 0 else "failed"
    log = path.with_suffix(".log").read_text(errors="replace").splitlines() if path.with_suffix(".log").exists() else []
    return Outcome([], "\n".join([why, *log[-15:]]), seconds)
