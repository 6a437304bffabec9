# docker build -t saferule .
# docker run --gpus all -v "$PWD/artifacts:/workspace/artifacts" saferule ./run_all.sh
#
# docs/container.md says what is in it, how large it is, and how to build it with another base or without CUDA.
#
# The digest is the one that the official images' own record (docker-library/repo-info) has for exactly this tag.
ARG BASE_IMAGE=python:3.11.16-slim-bookworm@sha256:c425d915a89a6dcd3183b1797ad9bd8878caff5a417f6371c8df93c8ea8b727f

# The checkout in two parts, so that the committed results are a layer of their own; readable for every user.
FROM ${BASE_IMAGE} AS checkout
COPY . /checkout
RUN chmod -R u+w,a+rX /checkout && mv /checkout/artifacts /artifacts

FROM ${BASE_IMAGE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# OpenGL without a display: EGL from the GPU's driver or from Mesa, else OSMesa. What is got is written down, because
# exact versions vanish from a distribution's mirrors: `saferule doctor` prints the list.
# hadolint ignore=DL3008
RUN dpkg-query -W | sort >/tmp/before \
    && apt-get update \
    && apt-get install -y --no-install-recommends \
        libegl1 libgl1-mesa-dri libopengl0 libosmesa6 make tini \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir -p /usr/local/share/saferule \
    && dpkg-query -W | sort | comm -13 /tmp/before - >/usr/local/share/saferule/apt-packages.tsv \
    && rm /tmp/before

ENV SAFERULE_VENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics

# The packages alone: a change of the code does not install torch again. PIP_FIND_LINKS is where pip looks for wheels
# beside its index, such as torch without CUDA.
ARG PIP_FIND_LINKS=
WORKDIR /workspace
COPY install.sh requirements.lock requirements-cuda.lock ./
RUN PIP_NO_CACHE_DIR=1 ./install.sh --lock-only

# The data and results that come with the project; the entrypoint puts them into a mounted folder that lacks them.
COPY --from=checkout /artifacts /opt/saferule/artifacts
COPY --from=checkout /checkout ./
RUN PIP_NO_CACHE_DIR=1 ./install.sh \
    && python -m compileall -q saferule \
    && mkdir artifacts \
    && ln -s /opt/saferule/artifacts/* artifacts/

ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="saferule" \
      org.opencontainers.image.description="Reproducibility artifact of Safe-RULE: Safe Reinforcement UnLEarning" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.documentation="docs/container.md"

ENTRYPOINT ["/usr/bin/tini", "-s", "-g", "--", "/workspace/docker/entrypoint.sh"]
CMD ["help"]
