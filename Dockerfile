# The base image is an argument so that it can be mirrored or pinned by digest.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements/run.txt requirements/build.txt requirements/
RUN python -m venv /opt/nomba-proxy \
 && /opt/nomba-proxy/bin/python -m pip install --require-hashes -r requirements/run.txt \
 && python -m pip install --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md ./
COPY proxy proxy
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheel . \
 && /opt/nomba-proxy/bin/python -m pip install --no-deps /tmp/wheel/*.whl

FROM ${PYTHON_IMAGE}
# The base image comes without bytecode of the standard library. Nothing could keep it later, with
# a read-only root: every start would compile it anew, which takes longer than all the rest.
RUN python -m compileall -q -x '/(site-packages|tests?)/' \
    "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=build /opt/nomba-proxy /opt/nomba-proxy
# What has to outlive a container, on a volume: a new one takes over to whom the folder belongs.
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/nomba-proxy
ENV PATH=/opt/nomba-proxy/bin:$PATH \
    NOMBA_PROXY_STATE_DIR=/var/lib/nomba-proxy \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Run it with a read-only root file system, a tmpfs at /tmp for large request bodies, and a volume or a
# tmpfs at /var/lib/nomba-proxy (docs/deployment.md).
USER 10001:10001
WORKDIR /
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9091/livez', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["nomba-proxy"]
CMD ["serve"]
