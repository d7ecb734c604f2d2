"""Memory: how much there is for this process, and what becomes of what is freed.

Freed memory is kept for the next step instead of being given back and fetched anew, until `give_back_freed_memory`, or for good
`stop_keeping_freed_memory`.

glibc maps every large buffer afresh and unmaps it when it is freed, so each step of training pays a page fault for every
4 KiB of its activations and gradients. Kept on the heap (in huge pages, where `THP_MEM_ALLOC_ENABLE=1` was set before torch
was loaded), the same buffers serve every step: a tenth of a small CPU step while each operation of a layer
had buffers of its own, nothing that could be measured where a layer has one (LOG.md). Elsewhere than on glibc this does nothing.

What is available is what the machine has free, and no more than the limits of a container or of the shell leave.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # <malloc.h>
_TOP_PAD_BYTES = 64 << 20
_OWN_MAPPING_BYTES, _MOST_MAPPINGS = 1 << 20, 65_536
"""Where freed memory is not kept: from what size on a buffer is the system's as soon as it is freed, and how many may be so."""


_largest_copy: ContextVar[float] = ContextVar("_largest_copy", default=math.inf)
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def available_bytes(device: torch.device | None = None) -> int:
    """Bytes that this process can still take: of `device` where that is a GPU, else of the machine, within its limits.

    An Apple GPU (MPS) shares the memory of the machine, and the system gives it two thirds or three quarters of that.
    """
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    shared = []
    if device is not None and device.type == "mps":
        import torch

        shared = [torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()]
    return max(0, min([psutil.virtual_memory().available, *shared, *_left_by_cgroups(), *_left_by_limits()]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: of the machine, of a GPU, or of a library that computes there. The shared memory
    of a GPU's processors is not meant: a kernel that asks for more than there is never fits."""
    said, kinds = str(error), {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, MemoryError) or "OutOfMemoryError" in kinds or any(words in said for words in _NO_MEMORY)


_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "MPS backend out of memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def room_for_a_copy(num_bytes: int) -> bool:
    """Whether a second copy of weights, which only saves time, may be made: in half of what is free, within `small_copies`."""
    return num_bytes <= min(available_bytes() // 2, _largest_copy.get())


@contextlib.contextmanager
def small_copies() -> Iterator[None]:
    """Inside, such a copy takes at most 1 GiB: a run answers in no more memory than it trains in, however much is free."""
    token = _largest_copy.set(1 << 30)
    try:
        yield
    finally:
        _largest_copy.reset(token)


def total_bytes(device: torch.device | None = None) -> int:
    """Bytes that there are for this process in all, what it holds included."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    if device is not None and device.type == "mps":
        import torch

        return int(torch.mps.recommended_max_memory())
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _cgroup_limits())])


def shared_bytes(device: torch.device) -> int:
    """Bytes of the machine's memory that torch holds for a GPU which shares it (MPS), and does not give back; 0 elsewhere."""
    if device.type != "mps":
        return 0
    import torch

    return int(torch.mps.driver_allocated_memory())


def _left_by_cgroups() -> list[int]:
    return [limit - used for limit, used in _cgroup_limits()]


def _cgroup_limits() -> list[tuple[int, int]]:
    """(limit, bytes in use) of every control group above this process that has a limit; nothing elsewhere than on Linux."""
    found = []
    for folder in _cgroup_folders():
        for limit_file, used_file, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with contextlib.suppress(OSError, ValueError):  # no such file, or a limit of `max`
                limit = int((folder / limit_file).read_bytes())
                used = int((folder / used_file).read_bytes()) - _statistic(folder / "memory.stat", cache)
                found.append((limit, max(0, used)))
    return found


def _cgroup_folders() -> list[Path]:
    """The control groups of this process, its own and those above it."""
    try:
        lines = _OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory") or "memory" in controllers.split(","):
            root = _CGROUPS / "memory" if controllers else _CGROUPS
            own = root / path.lstrip("/")
            folders += [own, *(above for above in own.parents if above == root or root in above.parents)]
    return folders


def _statistic(file: Path, name: str) -> int:
    for line in file.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _left_by_limits() -> list[int]:
    """What the shell's limit on address space (`ulimit -v`) leaves."""
    try:
        import resource
    except ImportError:  # Windows has none
        return []
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return [] if limit == resource.RLIM_INFINITY else [limit - psutil.Process().memory_info().vms]


def give_back_freed_memory() -> None:
    """Give the system what was freed and kept; to be called where a phase that needs much of it is over."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch is not None and torch.backends.mps.is_available():
        torch.mps.empty_cache()


def drop_mapped_pages(tensor: torch.Tensor) -> None:
    """Give the system the pages of a file that `tensor` is a view of; to be called where it is read no more, or seldom.

    They would be counted as this process's until the file is unmapped. Memory that is no file's is left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    length = (tensor.data_ptr() + tensor.nbytes) // page * page - start
    if length > 0 and _is_of_a_file(start, length):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _is_of_a_file(start: int, length: int) -> bool:
    """Whether those addresses are of a safetensors file."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            first, _, last = line.partition(" ")[0].partition("-")
            if int(first, 16) <= start and start + length <= int(last, 16):
                return ".safetensors" in line
    return False


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed buffers; whether it understood."""
    return _set_malloc({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: _TOP_PAD_BYTES})


def stop_keeping_freed_memory() -> None:
    """From now on a large buffer is the system's as soon as it is freed: where buffers are of many sizes, or so large that the
    work in them takes much longer than fetching them, what is kept would only stand beside what is in use."""
    sizes = dict.fromkeys((_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_TOP_PAD), _OWN_MAPPING_BYTES)
    _set_malloc({_M_MMAP_MAX: _MOST_MAPPINGS, **sizes})
    give_back_freed_memory()


def _set_malloc(settings: Mapping[int, int]) -> bool:
    """Whether the C library is one that understands all of `settings`."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) == 1 for name, value in settings.items())
