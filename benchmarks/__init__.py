"""Measurements that anyone can repeat: each module runs alone, prints a table, and ends with one line of JSON; `make bench` runs all."""

import os

# Before torch is loaded: its profiler, which counts allocated bytes here, otherwise reports its own start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "9")
# As the engine's workers have it: without it cuBLAS gives other bits from run to run, and deterministic algorithms warn of that.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
