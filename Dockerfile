# The proxy as an image: compiled in one stage, run in another that has no compiler.
# No image was built where the tests run (there is no engine); they lint this file and run the same command line.

FROM python:3.11-slim-bookworm AS build
# The compiler of the distribution, whatever its patch level: it stays behind in this stage.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md ./
COPY protocol protocol
COPY pyproxy pyproxy
RUN python -m venv /app && /app/bin/pip install --no-cache-dir --disable-pip-version-check .

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
