# A client of both engines; neither torch nor CrypTen is in it. From the root of the repository:
#   docker build -f deploy/docker/client.Dockerfile -t secure-quant-client .
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/secure-quant
ENV PATH=/opt/secure-quant/bin:$PATH
WORKDIR /src
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY protos protos
COPY secure_quant secure_quant
COPY server server
COPY client client
COPY cli cli
# Versions are pinned in constraints.txt.
# hadolint ignore=DL3013
RUN pip install -c constraints.txt '.[he]' \
    && rm -rf /opt/secure-quant/lib/python3.11/site-packages/secure_quant_server

FROM python:3.11-slim-bookworm
COPY --from=build /opt/secure-quant /opt/secure-quant
ENV PATH=/opt/secure-quant/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
ENTRYPOINT ["secure-quant", "infer"]
