"""Measurements that anyone can repeat: each module runs alone, prints a table, and ends with one line of JSON; `make bench` runs all."""

import os

# Before torch is loaded: its profiler, which counts allocated bytes here, otherwise reports its own start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "9")
