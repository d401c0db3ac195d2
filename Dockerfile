# Two images from one lock:
#   docker build --target cpu -t maestro:cpu .
#   docker build --target gpu -t maestro:gpu .
# Run the pipeline of a checkout (its git and DVC state stay outside the image):
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD":/maestro maestro:cpu
# A package mirror is handed in, never written down: --secret id=uv.toml,src=... and
# --secret id=pip.conf,src=...

FROM python:3.11.14-slim-bookworm AS packages
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --no-cache-dir uv==0.13.8 && uv venv /opt/venv
ENV VIRTUAL_ENV=/opt/venv
WORKDIR /maestro
COPY requirements.lock ./
RUN --mount=type=secret,id=uv.toml,target=/etc/uv/uv.toml \
    uv pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md ./
COPY mae ./mae
COPY pipelines ./pipelines
RUN uv pip install --no-deps --no-build-isolation -e .

FROM python:3.11.14-slim-bookworm AS cpu
# git, and ssh to push to where others look. Debian drops superseded versions from its mirrors, so
# pinned ones would not build for long.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes git openssh-client \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 maestro
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DO_NOT_TRACK=1 \
    DVC_NO_ANALYTICS=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false
COPY --from=packages /opt/venv /opt/venv
WORKDIR /maestro
COPY --chown=maestro:maestro . ./
# DVC links files of its cache into the workspace; root could write through such a link.
USER 1000
CMD ["python", "-m", "pipelines.flows.train"]

# The CUDA libraries come with the locked packages; only the driver is the host's.
FROM cpu AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
