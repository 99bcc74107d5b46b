-- Backups of the database: a copy of what the bucket tells, so that the status screen and alerts need not read it. The
-- bucket is the truth; a restored database knows only of backups taken before its own.
CREATE TABLE ops.backups (
    id             text PRIMARY KEY CHECK (id ~ '^[0-9a-f]{14}$'),
    key            text NOT NULL,
    bucket         text NOT NULL,
    environment    text NOT NULL,
    database       text NOT NULL,
    instance       text NOT NULL,
    -- The job that asked for it.
    request        text,
    state          text NOT NULL CHECK (state IN ('running', 'stored', 'failed')),
    started_at     timestamptz NOT NULL,
    -- The moment the data are from.
    snapshot_at    timestamptz,
    finished_at    timestamptz,
    size_bytes     bigint CHECK (size_bytes >= 0),
    sha256         text CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    server_version text,
    client_version text,
    tables         integer,
    rows           bigint,
    error          text,
    -- The last proof by a restore that succeeded; taken back when a later one fails.
    proved_at      timestamptz,
    proof_tried_at timestamptz,
    proof_ms       bigint CHECK (proof_ms >= 0),
    proof_problems text[] NOT NULL DEFAULT '{}',
    CHECK (state <> 'stored' OR (snapshot_at IS NOT NULL AND finished_at IS NOT NULL AND size_bytes IS NOT NULL
                                 AND sha256 IS NOT NULL)),
    CHECK (state <> 'failed' OR error IS NOT NULL),
    CHECK (proved_at IS NULL OR state = 'stored')
);
CREATE INDEX backups_newest ON ops.backups (snapshot_at DESC) WHERE state = 'stored';
