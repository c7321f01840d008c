# A client of every engine; neither torch nor CrypTen is in it. Build from the root of the repository:
#   docker build -f deploy/docker/client.Dockerfile -t secure-quant-client .
# For a release give the base with its digest: --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/secure-quant
ENV PATH=/opt/secure-quant/bin:$PATH
WORKDIR /src
# What is depended on, before the source: it changes less often. Versions are pinned in
# constraints.txt.
COPY pyproject.toml constraints.txt ./
COPY tools/extras.py tools/
RUN python tools/extras.py he onehost > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt
COPY setup.py README.md LICENSE ./
COPY protos protos
COPY secure_quant secure_quant
# Without server/: nothing here serves.
COPY client client
COPY cli cli
# hadolint ignore=DL3013
RUN pip install --no-deps .

FROM ${BASE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="secure-quant-client" \
      org.opencontainers.image.description="A client of every engine" \
      org.opencontainers.image.version="0.3.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/secure-quant /opt/secure-quant
# Compiled kernels are cached in /cache, a volume or a temporary file system of the pod.
ENV PATH=/opt/secure-quant/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/cache
RUN install -d -o 10001 -g 10001 /cache
USER 10001:10001
ENTRYPOINT ["secure-quant", "infer"]
