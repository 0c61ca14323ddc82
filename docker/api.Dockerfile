# The HTTP face, without torch. Build from the repository's root: docker build -f docker/api.Dockerfile .
ARG BASE=docker.io/library/python:3.12-slim

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/potstill
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# Dependencies first, in a layer of their own: it is built again only when they change.
RUN touch README.md LICENSE && /opt/potstill/bin/pip install --constraint constraints.txt '.[api,s3]'
COPY . .
RUN /opt/potstill/bin/pip install --no-deps --force-reinstall .

FROM ${BASE}
RUN useradd --uid 10001 --create-home potstill && install -d -o potstill -g potstill /var/lib/potstill
COPY --from=build /opt/potstill /opt/potstill
ENV PATH=/opt/potstill/bin:$PATH PYTHONUNBUFFERED=1 POTSTILL_HOME=/var/lib/potstill
USER potstill
WORKDIR /var/lib/potstill
VOLUME /var/lib/potstill
EXPOSE 8000
CMD ["uvicorn", "api.app:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "10"]
