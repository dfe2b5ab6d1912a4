# The proxy as an image: compiled in one stage, run in another that has no compiler.
# No image was built where the tests run (there is no engine); they lint this file and run the same command line.

FROM python:3.11-slim-bookworm AS build
# The compiler of the distribution, whatever its patch level: it stays behind in this stage.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# What it is built with stays in this stage; what it runs with, boto3 for ElastiCache included, goes to the next. Both as locked.
COPY requirements.lock ./
RUN sed '/^# \[serve\]/,$d' requirements.lock > build.txt \
    && sed -n '/^# \[serve\]/,/^# \[demo\]/p' requirements.lock > serve.txt \
    && python -m venv /build && /build/bin/pip install --require-hashes -r build.txt \
    && python -m venv /app && /app/bin/pip install --require-hashes -r serve.txt
COPY pyproject.toml README.md ./
COPY protocol protocol
COPY pyproxy pyproxy
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . && /app/bin/pip install --no-deps /wheel/*.whl

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 app && useradd --uid 10001 --gid app --no-create-home --shell /usr/sbin/nologin app
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The configuration is mounted, see docker-compose.yml.
WORKDIR /app
USER 10001:10001
EXPOSE 6380
ENTRYPOINT ["pyproxy"]
CMD ["serve", "/etc/pyproxy/pyproxy.toml"]
