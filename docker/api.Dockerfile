# The HTTP face, without torch. Build from the repository's root: docker build -f docker/api.Dockerfile .
ARG BASE=docker.io/library/python:3.12-slim

FROM ${BASE} AS wheel
COPY . /src
# What comes after [project] concerns those who work on it, and is no reason to install the dependencies again.
RUN mkdir /dependencies && sed '/^\[tool\./,$d' /src/pyproject.toml >/dependencies/pyproject.toml && cp /src/constraints.txt /dependencies \
    && touch /dependencies/README.md /dependencies/LICENSE && touch --date @0 /dependencies /dependencies/*
RUN python -m venv /opt/build && /opt/build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheel /src

FROM ${BASE}
RUN useradd --uid 10001 --create-home potstill && install -d -o potstill -g potstill /var/lib/potstill && python -m venv /opt/potstill
# Dependencies in a layer of their own, and ours above it: another version of potstill moves a megabyte.
COPY --from=wheel /dependencies /tmp/dependencies
WORKDIR /tmp/dependencies
RUN /opt/potstill/bin/pip install --no-cache-dir --constraint constraints.txt '.[api,s3]'
COPY --from=wheel /wheel /tmp/wheel
RUN /opt/potstill/bin/pip install --no-cache-dir --no-deps --force-reinstall /tmp/wheel/*.whl
ENV PATH=/opt/potstill/bin:$PATH PYTHONUNBUFFERED=1 POTSTILL_HOME=/var/lib/potstill
USER potstill
WORKDIR /var/lib/potstill
VOLUME /var/lib/potstill
EXPOSE 8000
CMD ["uvicorn", "api.app:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "10"]
