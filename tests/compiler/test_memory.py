from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")

SETUP = """
import resource
import torch
from pathlib import Path
from planish.compiler.memory import return_freed_memory, reuse_freed_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
"""


def run(script: str) -> float:
    done = subprocess.run([sys.executable, "-c", SETUP + script], stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


FAULTS = """
for _ in range(10):
    torch.ones(20 << 18)  # 20 MB, of 5120 pages
before = faults()
for _ in range(10):
    torch.ones(20 << 18)
print((faults() - before) / 10)
"""


def test_a_freed_block_is_reused_without_its_pages_being_zeroed_again() -> None:
    assert run("reuse_freed_memory()" + FAULTS) < 50


def test_what_is_free_between_living_blocks_goes_back_to_the_kernel() -> None:
    freed = run("""
reuse_freed_memory()
kept = []
for _ in range(20):
    large = torch.ones(8 << 18)
    kept.append(torch.ones(1 << 17))
    kept.append(large)
del large
kept = kept[::2]
before = resident_mb()
return_freed_memory()
print(before - resident_mb())
""")
    assert freed > 100
