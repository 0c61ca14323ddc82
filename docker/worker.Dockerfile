# A worker with PyTorch for CUDA (it runs on a CPU as well). Build from the repository's root: docker build -f docker/worker.Dockerfile .
ARG BASE=docker.io/library/python:3.12-slim

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/potstill
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# Dependencies first, in a layer of their own: it is built again only when they change.
RUN touch README.md LICENSE && /opt/potstill/bin/pip install --constraint constraints.txt '.[worker,s3]'
COPY . .
RUN /opt/potstill/bin/pip install --no-deps --force-reinstall .

FROM ${BASE}
# The engine compiles its CPU kernels for the processor that it finds, and Triton its launchers; without a compiler both do without.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home potstill && install -d -o potstill -g potstill /var/lib/potstill
COPY --from=build /opt/potstill /opt/potstill
# What they compile is kept on the volume: each step is a process of its own, and a home may be read-only or gone with its container.
# Large freed blocks stay with the process: given back to the kernel and faulted in again at each step, they halve the speed of a CPU run.
# Threads spin only briefly while they wait for each other: for longer, they crawl on a machine that is busy with other things.
# Without its workspace setting, cuBLAS gives other bits from run to run.
ENV PATH=/opt/potstill/bin:$PATH PYTHONUNBUFFERED=1 POTSTILL_HOME=/var/lib/potstill \
    XDG_CACHE_HOME=/var/lib/potstill/cache TRITON_CACHE_DIR=/var/lib/potstill/cache/triton \
    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 GOMP_SPINCOUNT=1000 CUBLAS_WORKSPACE_CONFIG=:4096:8
USER potstill
WORKDIR /var/lib/potstill
VOLUME /var/lib/potstill
CMD ["python", "-m", "worker", "--queues", "gpu,cpu"]
