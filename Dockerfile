# The same minor version as .python-version.
ARG PYTHON_VERSION=3.13

FROM python:${PYTHON_VERSION}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# The image's own pip installs into the environment, so that the environment has none.
RUN python -m venv --without-pip /opt/cacheyd
WORKDIR /src
# First what changes seldom. Every dependency is the locked one or the build fails; nothing is compiled.
COPY requirements.lock ./
RUN pip --python /opt/cacheyd/bin/python install --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY cacheyd ./cacheyd
RUN pip --python /opt/cacheyd/bin/python install --no-deps .

FROM python:${PYTHON_VERSION}-slim
LABEL org.opencontainers.image.title="cacheyd" \
      org.opencontainers.image.description="A pull-through cache for container registries" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/cacheyd /opt/cacheyd
# Owned by cacheyd's user, so that a named volume put here is, too.
RUN install -d -o 65532 -g 65532 -m 0750 /var/cache/cacheyd
# No user has this number in /etc/passwd, so there is no home; nothing is written outside CACHE_DIR, and the root file
# system can be read-only. TMPDIR is for SQLite, should it need a temporary file. Python's bytecode is there already.
ENV PATH=/opt/cacheyd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/nonexistent \
    TMPDIR=/var/cache/cacheyd \
    CACHE_DIR=/var/cache/cacheyd
VOLUME /var/cache/cacheyd
# By number, or Kubernetes cannot tell that it is not root.
USER 65532:65532
EXPOSE 3000
# Follows PORT, not a port in a settings file. No proxy from the environment is used. Kubernetes has its own probes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:%s/healthz' % (os.environ.get('PORT') or 3000), timeout=4)"]
# SIGTERM lets running transfers end (20 s): docker stop --time 30.
ENTRYPOINT ["cacheyd"]
CMD ["serve"]
