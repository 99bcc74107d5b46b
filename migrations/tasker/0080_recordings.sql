-- What follows a call. The platform's own tables are never altered; these rows say what was done.

-- A row for every call whose record was closed. It is what tells the calls that ended while nobody was there.
CREATE TABLE ops.post_calls (
    -- As the platform writes it.
    call_id       text PRIMARY KEY,
    tenant        text,
    ended_at      timestamptz,
    -- What was done with the platform's record, in words.
    record        text NOT NULL,
    -- The object's key in the bucket of recordings.
    recording_key text,
    closed_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX post_calls_closed ON ops.post_calls (closed_at);

-- A row for every recording, whatever became of it.
CREATE TABLE ops.recordings (
    id                     uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    call_id                text,
    tenant                 text,
    bucket                 text NOT NULL,
    original_key           text NOT NULL,
    state                  text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'processed', 'failed')),
    -- Why it was given up, or why the last attempt to process it anew was.
    error                  text,
    original_bytes         bigint CHECK (original_bytes >= 0),
    original_sha256        text,
    original_modified_at   timestamptz,
    original_loudness_lufs float8,
    processed_key          text,
    metadata_key           text,
    processed_bytes        bigint CHECK (processed_bytes >= 0),
    processed_sha256       text,
    processed_format       text,
    duration_ms            bigint CHECK (duration_ms >= 0),
    -- EBU R128; NULL for silence.
    loudness_lufs          float8,
    true_peak_dbtp         float8,
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL DEFAULT now(),
    processed_at           timestamptz,
    original_deleted_at    timestamptz,
    -- Why the original was kept when its time was over.
    sweep_note             text,
    UNIQUE (bucket, original_key),
    CHECK (state <> 'failed' OR error IS NOT NULL),
    CHECK (state <> 'processed' OR (original_bytes IS NOT NULL AND original_sha256 IS NOT NULL AND processed_key IS NOT NULL
        AND metadata_key IS NOT NULL AND processed_bytes IS NOT NULL AND processed_sha256 IS NOT NULL
        AND processed_at IS NOT NULL AND duration_ms IS NOT NULL))
);
CREATE INDEX recordings_call ON ops.recordings (call_id);
CREATE INDEX recordings_queued ON ops.recordings (created_at) WHERE state = 'queued';
CREATE INDEX recordings_originals ON ops.recordings (bucket, processed_at, id)
    WHERE state = 'processed' AND original_deleted_at IS NULL;
