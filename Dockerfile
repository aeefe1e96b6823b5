# Two stages: the first installs the locked dependencies and the code. The second contains only the result.
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /app
RUN python -m venv .venv
COPY requirements.lock ./
RUN .venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY shortener shortener
RUN .venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="sms-shortener" \
      org.opencontainers.image.description="Self-hosted link shortener and click tracker for SMS" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.3.0"
RUN groupadd --gid 10001 shortener \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin shortener \
    && install -d -m 0700 -o 10001 -g 10001 /data
WORKDIR /app
COPY --from=build /app/.venv .venv
COPY config/shortener.toml config/shortener.toml
# Error texts name files of this folder.
COPY docs docs
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SHORTENER_DATA_DIR=/data \
    SHORTENER_HOST=0.0.0.0
# The user is a number, because Kubernetes cannot check whether a user name is root. Only /data must be writable.
USER 10001:10001
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "from urllib.request import urlopen; from shortener.settings_sources import load; urlopen(f'http://127.0.0.1:{load().port}/healthz', timeout=3)"]
CMD ["shortener", "serve"]
