# ReelsRS in a container.
#
#   docker build -t reelsrs .                           on the CPU
#   docker build --build-arg TORCH=cuda -t reelsrs .    on an NVIDIA GPU
#   podman build --format docker -t reelsrs .           (Podman's own format has no HEALTHCHECK)
#
#   docker run --rm --init -p 127.0.0.1:8000:8000 -e REELSRS_ALLOW_ANYONE=true \
#       -v reelsrs-data:/data -v reelsrs-weights:/weights reelsrs
#
# It listens on every address of its container, and does not start for anyone. Published on 127.0.0.1 it may; published
# elsewhere, make a key instead: docker run --rm -v reelsrs-data:/data reelsrs keys create NAME --rights write
#
# /data keeps the library, /weights the downloaded models. With a read-only root (--read-only) give it --tmpfs /tmp.

ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm


FROM ${PYTHON_IMAGE} AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/reelsrs

# torch and torchvision are one pair from one index: a CPU build of one beside another build of the other does not
# load. PyTorch's CPU index has the small pair, the ordinary package index the one for CUDA, which also runs on the
# CPU and is several times as large.
ARG TORCH=cpu
ARG TORCH_VERSION=2.14.1
ARG TORCHVISION_VERSION=0.29.1
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=cache,target=/root/.cache/pip set -eu; \
    warning=; \
    case "$TORCH" in \
    cuda) ;; \
    cpu) \
        if answer=$(python -c "import sys, urllib.request as web; web.urlopen(sys.argv[1], timeout=30)" "$TORCH_CPU_INDEX/torch/" 2>&1); then \
            set -- --index-url "$TORCH_CPU_INDEX"; \
        else \
            warning="WARNING: $TORCH_CPU_INDEX cannot be reached ($(echo "$answer" | tail -n 1)). Falling back to the package index's torch and torchvision: they run on the CPU too, but bring CUDA along, and the image grows by gigabytes."; \
            printf '%s\n' "" "****" "$warning" "****" "" >&2; \
        fi ;; \
    *) echo "TORCH must be cpu or cuda, not '$TORCH'" >&2; exit 2 ;; \
    esac; \
    pip --python /opt/reelsrs/bin/python install "$@" "torch==$TORCH_VERSION" "torchvision==$TORCHVISION_VERSION"; \
    /opt/reelsrs/bin/python -B -c "import torch, torchvision; print('torch', torch.__version__, 'and torchvision', torchvision.__version__)" \
        > /opt/reelsrs/torch.txt; \
    if [ -n "$warning" ]; then echo "$warning" >> /opt/reelsrs/torch.txt; fi

# The rest, as it is locked: these versions, and files with these hashes only. The pair stays as it is. Bytecode is
# compiled here, once, and checked against nothing later: the file system may be read-only by then.
COPY .ci/requirements.lock /
RUN --mount=type=cache,target=/root/.cache/pip set -eu; \
    pip --python /opt/reelsrs/bin/python install --no-deps --require-hashes -r /requirements.lock; \
    pip --python /opt/reelsrs/bin/python check; \
    /opt/reelsrs/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/reelsrs/lib || \
        echo "some files of the packages are not meant for this Python and stay uncompiled" >&2


# ReelsRS itself, laid out below /project, so that it becomes a small layer of its own.
FROM dependencies AS project
COPY . /src
RUN --mount=type=cache,target=/root/.cache/pip set -eu; \
    pip --python /opt/reelsrs/bin/python wheel --no-deps --wheel-dir /wheels /src; \
    pip --python /opt/reelsrs/bin/python install --no-deps --no-index --root /project /wheels/*.whl; \
    /opt/reelsrs/bin/python -m compileall -q --invalidation-mode unchecked-hash -s /project /project/opt/reelsrs/lib


FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="ReelsRS" \
      org.opencontainers.image.description="Video recommendations as a service" \
      org.opencontainers.image.licenses="MIT"

# What the health check asks: is /readyz 200? Straight to this container, past any proxy.
RUN set -eu; \
    useradd --uid 10001 --user-group --no-create-home --home-dir /weights --shell /usr/sbin/nologin reelsrs; \
    install -d -o reelsrs -g reelsrs /data /weights; \
    printf '%s\n' \
        '#!/opt/reelsrs/bin/python -IS' \
        'import http.client, os, sys' \
        'service = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("REELSRS_PORT") or 8000), timeout=4)' \
        'try:' \
        '    service.request("GET", "/readyz")' \
        '    answer = service.getresponse()' \
        '    print(answer.status, answer.read().decode(errors="replace"))' \
        'except OSError as error:' \
        '    sys.exit(f"no answer: {error}")' \
        'sys.exit(answer.status != 200)' \
        > /usr/local/bin/reelsrs-ready; \
    chmod 755 /usr/local/bin/reelsrs-ready

# Models are kept in /weights; caches that may be lost go to /tmp, the only other place that is written to.
ENV PATH=/opt/reelsrs/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/weights \
    HF_HOME=/weights \
    XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    NUMBA_CACHE_DIR=/tmp/numba \
    REELSRS_DATA_DIR=/data \
    REELSRS_HOST=0.0.0.0

USER 10001:10001
WORKDIR /data

COPY --from=dependencies /opt/reelsrs /opt/reelsrs
COPY --from=project /project/ /
# Says once more which torch it came to be, and that the command starts.
RUN cat /opt/reelsrs/torch.txt && reelsrs --version

VOLUME ["/data", "/weights"]
EXPOSE 8000
# The first start downloads the model, which takes its time.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 CMD ["reelsrs-ready"]
ENTRYPOINT ["reelsrs"]
CMD ["serve"]
