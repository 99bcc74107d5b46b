# voiceai-tasker: jobs, schedules and the database backup, with the PostgreSQL client of the platform's version and ffmpeg.
#
#   docker build -f deploy/containers/voiceai-tasker.Dockerfile -t voiceai-tasker .
#   docker build -f deploy/containers/voiceai-tasker.Dockerfile --build-arg PG_MAJOR=18 -t voiceai-tasker .
#
# With BINARIES=prebuilt nothing is compiled: BINARY, a path in the build context, is taken as it is.
ARG BASE=debian:trixie-slim
ARG RUST=rust:1.95-trixie
ARG BINARIES=build
ARG PG_MAJOR=17

FROM ${RUST} AS build
ARG REVISION=unknown
WORKDIR /source
COPY . .
# The target directory is a cache and no layer, so the program is copied out of it in the same step.
# The allocator asks the machine that builds for its page size; kernels of arm64 have 4, 16 or 64 KiB, and one build must run on all.
RUN --mount=type=cache,id=voiceai-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=voiceai-target,target=/source/target,sharing=locked \
    if [ "$(uname -m)" = aarch64 ]; then export JEMALLOC_SYS_WITH_LG_PAGE=16; fi; \
    VOICEAI_REVISION="${REVISION}" cargo build --release --locked --package voiceai-tasker --bin voiceai-tasker \
    && install -D target/release/voiceai-tasker /out/voiceai-tasker

FROM scratch AS prebuilt
ARG BINARY=dist/voiceai-tasker
COPY ${BINARY} /out/voiceai-tasker

FROM ${BINARIES} AS binaries

# The real pg_dump and pg_restore. Debian's /usr/bin/pg_dump is a wrapper in Perl that chooses a version by itself; it stays here.
FROM ${BASE} AS postgresql
ARG PG_MAJOR
RUN apt-get update \
    && if ! apt-cache show "postgresql-client-${PG_MAJOR}" >/dev/null 2>&1; then \
         DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates postgresql-common \
         && /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y; \
       fi \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "postgresql-client-${PG_MAJOR}" \
    && install -D --target-directory=/out/bin "/usr/lib/postgresql/${PG_MAJOR}/bin/pg_dump" "/usr/lib/postgresql/${PG_MAJOR}/bin/pg_restore" \
    && install -d /out/lib && cp --no-dereference --target-directory=/out/lib /usr/lib/*/libpq.so.5*

FROM ${BASE}
ARG PG_MAJOR
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="voiceai-tasker" \
      org.opencontainers.image.description="The platform's background work: jobs, schedules, database backups" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"

# libpq5 is there for what it depends on: the client's own copy in /usr/local/lib is found first.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
         ca-certificates ffmpeg liblz4-1 libpq5 libzstd1 tini zlib1g \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log \
    && groupadd --gid 10001 voiceai \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin voiceai \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/voiceai-recordings \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +

COPY --from=postgresql /out/bin /usr/lib/postgresql/${PG_MAJOR}/bin
COPY --from=postgresql /out/lib /usr/local/lib
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/lib/postgresql/${PG_MAJOR}/bin:/usr/sbin:/usr/bin:/sbin:/bin
# A client of another version, or one that lacks a library, is found now and not at the first backup.
RUN ldconfig \
    && for tool in pg_dump pg_restore; do \
         case "$($tool --version)" in "$tool (PostgreSQL) ${PG_MAJOR}."*) ;; *) exit 1 ;; esac; \
       done
COPY LICENSE LICENSE-APACHE LICENSE-MIT /usr/share/doc/voiceai/
COPY --from=binaries /out/voiceai-tasker /usr/local/bin/voiceai-tasker

# Numbers, so that an orchestrator can tell that it is not root.
USER 10001:10001
# What is written: give a read-only container a tmpfs on /tmp, and where recordings are processed a volume on the work folder.
ENV RUNTIME_DIR=/tmp \
    HOME=/tmp \
    RECORDING_WORK_DIR=/var/lib/voiceai-recordings
STOPSIGNAL SIGTERM
# Live, not ready: a container is not restarted because Redis is away. Stop it with `stop --time 35`:
# SHUTDOWN_TIMEOUT is 30 s.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["/usr/local/bin/voiceai-tasker", "healthcheck"]
ENTRYPOINT ["/usr/bin/tini", "--", "/usr/local/bin/voiceai-tasker"]
CMD ["run"]
