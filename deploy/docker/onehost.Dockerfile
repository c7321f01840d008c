# The one host of the engine without a dealer. Build from the root of the repository:
#   docker build -f deploy/docker/onehost.Dockerfile -t secure-quant-onehost .
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
RUN python tools/extras.py onehost server traces budgets > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt
COPY setup.py README.md LICENSE ./
COPY protos protos
COPY secure_quant secure_quant
# Without client/: this image has no code that opens a user's secret.
COPY server server
COPY cli cli
# hadolint ignore=DL3013
RUN pip install --no-deps .

FROM ${BASE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="secure-quant-onehost" \
      org.opencontainers.image.description="The one host of the engine without a dealer" \
      org.opencontainers.image.version="0.3.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/secure-quant /opt/secure-quant
# Compiled kernels are cached in /cache, a volume or a temporary file system of the pod.
ENV PATH=/opt/secure-quant/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/cache
RUN install -d -o 10001 -g 10001 /cache /ledger
USER 10001:10001
EXPOSE 7400
ENTRYPOINT ["secure-quant", "serve"]
