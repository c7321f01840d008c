# Party 0, party 1 and the dealer of secret sharing. Build from the root of the repository:
#   docker build -f deploy/docker/party.Dockerfile -t secure-quant-party .
FROM python:3.11-slim-bookworm AS build
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/secure-quant
ENV PATH=/opt/secure-quant/bin:$PATH
# The large dependencies first: they change less often than the code.
WORKDIR /src
COPY constraints.txt ./
# hadolint ignore=DL3013
RUN pip install -c constraints.txt torch
COPY pyproject.toml setup.py README.md LICENSE ./
COPY protos protos
COPY secure_quant secure_quant
COPY server server
COPY cli cli
# Without client/: this image has no code that opens a user's secret. Versions are pinned in
# constraints.txt.
# hadolint ignore=DL3013
RUN pip install -c constraints.txt '.[mpc,server]' && secure-quant add-crypten

FROM python:3.11-slim-bookworm
COPY --from=build /opt/secure-quant /opt/secure-quant
# Compiled kernels are cached in /cache, a volume or a temporary file system of the pod.
ENV PATH=/opt/secure-quant/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/cache
RUN install -d -o 10001 -g 10001 /cache
USER 10001:10001
EXPOSE 7000 7100 7200
ENTRYPOINT ["secure-quant", "serve"]
