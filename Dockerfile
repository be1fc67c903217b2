# The image that cronjob.yaml runs: docker build --build-arg VERSION=... --build-arg REVISION=... --build-arg CREATED=... .
#
# The environment is made with the Python of BUILDER and run with that of BASE: both are Debian's, of the same release.
ARG BUILDER=docker.io/library/debian:12-slim@sha256:60eac759739651111db372c07be67863818726f754804b8707c90979bda511df
ARG BASE=gcr.io/distroless/python3-debian12:nonroot@sha256:7d1042ce588ab97019fe95c24ffca7bc5a82ccdac572511d5e09bda4435c89c5

FROM ${BASE} AS base

FROM ${BUILDER} AS tools
RUN apt-get update \
    && apt-get install --yes --no-install-recommends binutils python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements-build.txt .
RUN python3 -m venv /tools \
    && /tools/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r requirements-build.txt

# Python's own library comes without byte code, and nobody could write it later: 0.25 s of CPU for each start. It is made
# from the sources of BASE, which may be of another revision than those here.
FROM tools AS library
COPY --from=base /usr/lib/python3.11 /base/usr/lib/python3.11
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash -s /base /base/usr/lib/python3.11 \
    && find /base -type f ! -name '*.pyc' -delete \
    && find /base -depth -type d -empty -delete \
    && find /base -exec touch --no-dereference --date=@0 {} +

FROM tools AS dependencies
COPY requirements-image.txt .
RUN python3 -m venv --without-pip /opt/workflow-watcher \
    && /tools/bin/pip --python /opt/workflow-watcher/bin/python install \
        --no-cache-dir --no-compile --no-deps --require-hashes --only-binary :all: -r requirements-image.txt
# What is never imported; tests/image runs the program without it.
# 1. kubernetes has every group of the API, and all of it a second time for asyncio: what remains are those of ConfigMaps
#    and of rights, and what they import. Who logs in by a kubeconfig needs none of them.
# 2. botocore describes all of Amazon: what remains are queues, and where credentials come from. boto3's are resources.
# 3. zstandard has a second extension module, for PyPy. And extension modules have names for debuggers.
# 4. Programs of the dependencies.
RUN cd /opt/workflow-watcher/lib/python3.11/site-packages \
    && rm -r kubernetes/aio \
    && /opt/workflow-watcher/bin/python -B -c 'import pathlib, sys; \
        from kubernetes.client import AuthorizationV1Api, CoreV1Api, api, models; \
        [file.unlink() for part in (api, models) for file in pathlib.Path(part.__path__[0]).glob("[!_]*.py") \
         if f"{part.__name__}.{file.stem}" not in sys.modules]' \
    && find botocore/data -mindepth 1 -maxdepth 1 -type d \
        ! -name signin ! -name sqs ! -name sso ! -name sso-oidc ! -name sts -exec rm -r {} + \
    && rm -r boto3/data boto3/examples \
    && rm zstandard/_cffi.*.so \
    && find . -name '*.so' -exec strip --strip-unneeded {} + \
    && find /opt/workflow-watcher/bin ! -type d ! -name 'python*' -delete
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/workflow-watcher \
    && find /opt/workflow-watcher -exec touch --no-dereference --date=@0 {} +

FROM dependencies AS program
COPY pyproject.toml README.md ./
COPY job job
RUN /tools/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /wheels . \
    && /tools/bin/pip --python /opt/workflow-watcher/bin/python install \
        --no-compile --no-deps --no-index --root /program /wheels/*.whl \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -s /program /program \
    && find /program -exec touch --no-dereference --date=@0 {} +

FROM ${BASE}
# From what changes seldom to what changes often: a new version is a new last layer.
COPY --from=library /base /
COPY --from=dependencies /opt/workflow-watcher /opt/workflow-watcher
COPY --from=program /program /
ENV PATH=/opt/workflow-watcher/bin:/usr/local/bin:/usr/bin:/bin
# By number, so that a kubelet sees that it is not root.
USER 65532:65532
# The base's is the home folder of its user, which another one cannot enter.
WORKDIR /
ENTRYPOINT ["workflow-watcher"]
ARG VERSION=""
ARG REVISION=""
ARG CREATED=""
LABEL org.opencontainers.image.title="workflow-watcher" \
      org.opencontainers.image.description="Turns changes of Argo Workflows into messages, without an always-on pod." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
