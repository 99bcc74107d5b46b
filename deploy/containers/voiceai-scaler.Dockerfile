# voiceai-scaler: the control loop, its provider scripts and what they call.
#
#   docker build -f deploy/containers/voiceai-scaler.Dockerfile -t voiceai-scaler .
#
# With BINARIES=prebuilt nothing is compiled: BINARY, a path in the build context, is taken as it is.
ARG BASE=debian:trixie-slim
ARG RUST=rust:1.95-trixie
ARG BINARIES=build

FROM ${RUST} AS build
ARG REVISION=unknown
WORKDIR /source
COPY . .
# The target directory is a cache and no layer, so the program is copied out of it in the same step.
# The allocator asks the machine that builds for its page size; kernels of arm64 have 4, 16 or 64 KiB, and one build must run on all.
RUN --mount=type=cache,id=voiceai-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=voiceai-target,target=/source/target,sharing=locked \
    if [ "$(uname -m)" = aarch64 ]; then export JEMALLOC_SYS_WITH_LG_PAGE=16; fi; \
    VOICEAI_REVISION="${REVISION}" cargo build --release --locked --package voiceai-scaler --bin voiceai-scaler \
    && install -D target/release/voiceai-scaler /out/voiceai-scaler

FROM scratch AS prebuilt
ARG BINARY=dist/voiceai-scaler
COPY ${BINARY} /out/voiceai-scaler

FROM ${BINARIES} AS binaries

FROM ${BASE}
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="voiceai-scaler" \
      org.opencontainers.image.description="Keeps the fleets of Voice and API servers at the right size" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"

# The provider scripts are bash with curl and jq; Amazon's call the AWS command line. tini reaps what a script leaves behind.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
         awscli bash ca-certificates curl jq tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log \
    && groupadd --gid 10001 voiceai \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin voiceai \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +

COPY scripts/providers /opt/voiceai/providers
COPY scripts/generate-cloud-init.sh /opt/voiceai/generate-cloud-init.sh
COPY LICENSE LICENSE-APACHE LICENSE-MIT /usr/share/doc/voiceai/
COPY --from=binaries /out/voiceai-scaler /usr/local/bin/voiceai-scaler

# Numbers, so that an orchestrator can tell that it is not root.
USER 10001:10001
# The one place that is written: give a read-only container a tmpfs on /tmp.
ENV RUNTIME_DIR=/tmp \
    PROVIDER_SCRIPTS_DIR=/opt/voiceai/providers \
    HOME=/tmp
STOPSIGNAL SIGTERM
# Live, not ready: a container is not restarted because Redis is away. Stop it with `stop --time 35`:
# SHUTDOWN_TIMEOUT is 30 s.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["/usr/local/bin/voiceai-scaler", "healthcheck"]
ENTRYPOINT ["/usr/bin/tini", "--", "/usr/local/bin/voiceai-scaler"]
CMD ["run"]
