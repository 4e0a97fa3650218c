# ReelsRS in a container.
#
#   docker build -t reelsrs .                           on the CPU
#   docker build --build-arg TORCH=cuda -t reelsrs .    on an NVIDIA GPU
#   podman build --format docker -t reelsrs .           (Podman's own format has no HEALTHCHECK)
#
#   docker run --rm --init -p 127.0.0.1:8000:8000 -e REELSRS_ALLOW_ANYONE=true \
#       -v reelsrs-data:/data -v reelsrs-weights:/weights reelsrs
#
# The service listens on every address of its container, so it does not start without an API key or
# REELSRS_ALLOW_ANYONE=true. Set that variable only if the port is published on 127.0.0.1. Otherwise, create an API key:
#
#   docker run --rm -v reelsrs-data:/data reelsrs keys create NAME --rights write
#
# /data stores the library, /weights the downloaded models. A read-only root (--read-only) also needs --tmpfs /tmp.

ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm


FROM ${PYTHON_IMAGE} AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/reelsrs

# torch and torchvision must come from the same index: a CPU build of one does not load beside another build of the
# other. PyTorch's CPU index has the small builds. The default package index has the builds for CUDA, which also run on
# the CPU and are several times as large.
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
            warning="WARNING: $TORCH_CPU_INDEX cannot be reached ($(echo "$answer" | tail -n 1)). Using torch and torchvision of the default package index instead: they also run on the CPU, but include CUDA, so the image is gigabytes larger."; \
            printf '%s\n' "" "****" "$warning" "****" "" >&2; \
        fi ;; \
    *) echo "TORCH must be cpu or cuda, not '$TORCH'" >&2; exit 2 ;; \
    esac; \
    pip --python /opt/reelsrs/bin/python install "$@" "torch==$TORCH_VERSION" "torchvision==$TORCHVISION_VERSION"; \
    /opt/reelsrs/bin/python -B -c "import torch, torchvision; print('torch', torch.__version__, 'and torchvision', torchvision.__version__)" \
        > /opt/reelsrs/torch.txt; \
    if [ -n "$warning" ]; then echo "$warning" >> /opt/reelsrs/torch.txt; fi

# The other packages, in the locked versions and only from files with the locked hashes; torch and torchvision stay as
# they are. Bytecode is compiled once, here, and not checked later, because the file system may be read-only then.
COPY .ci/requirements.lock /
RUN --mount=type=cache,target=/root/.cache/pip set -eu; \
    pip --python /opt/reelsrs/bin/python install --no-deps --require-hashes -r /requirements.lock; \
    pip --python /opt/reelsrs/bin/python check; \
    /opt/reelsrs/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/reelsrs/lib || \
        echo "some files of the packages are for other Python versions and are not compiled" >&2


# ReelsRS itself, installed below /project, so that it becomes a separate small layer.
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

# The health check: requests /readyz of this container directly, not through a proxy, and succeeds if the status is 200.
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
        '    sys.exit(f"no response: {error}")' \
        'sys.exit(answer.status != 200)' \
        > /usr/local/bin/reelsrs-ready; \
    chmod 755 /usr/local/bin/reelsrs-ready

# Models are stored in /weights. Caches that may be lost go to /tmp; apart from these and /data, nothing is written.
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
# Print the versions of torch and torchvision, and check that the command starts.
RUN cat /opt/reelsrs/torch.txt && reelsrs --version

VOLUME ["/data", "/weights"]
EXPOSE 8000
# The start period is long because the first start downloads the model.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 CMD ["reelsrs-ready"]
ENTRYPOINT ["reelsrs"]
CMD ["serve"]
