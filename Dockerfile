# One image, two commands: the API (default) and `celery -A worker.main worker`.
# Give PYTHON_IMAGE with a digest to pin the base: --build-arg PYTHON_IMAGE=python:3.12-slim@sha256:...
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS builder
ENV UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /build
COPY requirements/uv.lock requirements/run.lock ./
RUN python -m venv uv && uv/bin/pip install --no-cache-dir --require-hashes -r uv.lock
RUN uv/bin/uv venv --python /usr/local/bin/python3 /opt/venv \
 && uv/bin/uv pip install --python /opt/venv/bin/python --compile-bytecode --require-hashes -r run.lock

FROM ${PYTHON_IMAGE} AS runtime
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/srv/lethe \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LETHE_DATA_DIR=/var/lib/lethe
RUN groupadd --gid 10001 lethe \
 && useradd --uid 10001 --gid lethe --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin lethe \
 && install -d -o lethe -g lethe -m 0700 /var/lib/lethe
COPY --from=builder /opt/venv /opt/venv
WORKDIR /srv/lethe
COPY LICENSE pyproject.toml ./
COPY app app
COPY core core
COPY worker worker
COPY migrations migrations
USER 10001:10001
VOLUME /var/lib/lethe
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENV LETHE_HOST=0.0.0.0 LETHE_PORT=8000
CMD ["python", "-m", "app.main"]
