# One image for api, worker and sandbox; docker-compose.yml says which one a container runs.

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/distillery
WORKDIR /src
# Dependencies first: they change less often than the code.  Wheels alone, each checked against the lock.
COPY requirements.lock ./
RUN /opt/distillery/bin/pip install --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md ./
COPY api api
COPY cli cli
COPY examples examples
COPY sandbox sandbox
COPY shared shared
COPY worker worker
RUN /opt/distillery/bin/pip install --no-deps --no-build-isolation . \
    && /opt/distillery/bin/python -m compileall -q /opt/distillery/lib

FROM python:${PYTHON}-slim
# The base image brings ca-certificates.
RUN groupadd --gid 10001 distillery \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin distillery \
    && install --directory --owner 10001 --group 10001 --mode 0700 /data
COPY --from=build /opt/distillery /opt/distillery
# The file system may be read-only: nothing is written but /data (a volume) and /tmp (a tmpfs).
ENV PATH=/opt/distillery/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 DISTILL_DATA_DIR=/data
WORKDIR /data
USER 10001:10001
EXPOSE 8600
CMD ["python", "-m", "api"]
