# A worker with PyTorch for CUDA (it runs on a CPU as well). Build from the repository's root: docker build -f docker/worker.Dockerfile .
ARG BASE=docker.io/library/python:3.12-slim

FROM ${BASE} AS wheel
COPY . /src
# What comes after [project] concerns those who work on it, and is no reason to install the dependencies again.
RUN mkdir /dependencies && sed '/^\[tool\./,$d' /src/pyproject.toml >/dependencies/pyproject.toml && cp /src/constraints.txt /dependencies \
    && touch /dependencies/README.md /dependencies/LICENSE && touch --date @0 /dependencies /dependencies/*
RUN python -m venv /opt/build && /opt/build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheel /src

FROM ${BASE}
# The engine compiles its CPU kernels for the processor that it finds, and Triton its launchers; without a compiler both do without.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home potstill && install -d -o potstill -g potstill /var/lib/potstill && python -m venv /opt/potstill
# Dependencies in a layer of their own, and ours above it: another version of potstill moves a megabyte, not PyTorch.
COPY --from=wheel /dependencies /tmp/dependencies
WORKDIR /tmp/dependencies
RUN /opt/potstill/bin/pip install --no-cache-dir --constraint constraints.txt '.[worker,s3]'
COPY --from=wheel /wheel /tmp/wheel
RUN /opt/potstill/bin/pip install --no-cache-dir --no-deps --force-reinstall /tmp/wheel/*.whl
# What they compile is kept on the volume: each step is a process of its own, and a home may be read-only or gone with its container.
# Large freed blocks stay with the process: given back to the kernel and faulted in again at each step, they halve the speed of a CPU run.
# Threads spin only briefly while they wait for each other: for longer, they crawl on a machine that is busy with other things.
# Without its workspace setting, cuBLAS gives other bits from run to run.
ENV PATH=/opt/potstill/bin:$PATH PYTHONUNBUFFERED=1 POTSTILL_HOME=/var/lib/potstill \
    XDG_CACHE_HOME=/var/lib/potstill/cache TRITON_CACHE_DIR=/var/lib/potstill/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/potstill/cache/inductor MPLCONFIGDIR=/var/lib/potstill/cache/matplotlib \
    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 GOMP_SPINCOUNT=1000 CUBLAS_WORKSPACE_CONFIG=:4096:8
USER potstill
WORKDIR /var/lib/potstill
VOLUME /var/lib/potstill
CMD ["python", "-m", "worker"]
