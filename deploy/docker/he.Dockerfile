# The server of homomorphic encryption. Build from the root of the repository:
#   docker build -f deploy/docker/he.Dockerfile -t secure-quant-he .
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
RUN python tools/extras.py he server traces budgets > requirements.txt \
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
LABEL org.opencontainers.image.title="secure-quant-he" \
      org.opencontainers.image.description="The server of homomorphic encryption" \
      org.opencontainers.image.version="0.3.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/secure-quant /opt/secure-quant
ENV PATH=/opt/secure-quant/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 7300
ENTRYPOINT ["secure-quant", "serve"]
