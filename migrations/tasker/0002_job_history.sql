-- What became of jobs. Written in batches after the fact; a job's live state is the queue's, in Redis.
CREATE TABLE ops.job_history (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id       text NOT NULL,
    queue        text NOT NULL,
    kind         text NOT NULL,
    tenant       text,
    priority     smallint NOT NULL DEFAULT 0,
    -- completed, failed (an attempt that is tried again), dead, cancelled, discarded, removed, replayed.
    outcome      text NOT NULL,
    -- Of a dead job: exhausted, discarded_by_handler, poison, no_handler, bad_payload, child_failed.
    reason       text,
    -- The attempt's number, 1 for the first; 0 when none had begun.
    attempt      integer NOT NULL DEFAULT 0,
    -- How often the job was replayed before: its lineage is every row with its job_id.
    replays      integer NOT NULL DEFAULT 0,
    enqueued_at  timestamptz,
    started_at   timestamptz,
    finished_at  timestamptz NOT NULL DEFAULT now(),
    -- Of the attempt.
    duration_ms  bigint,
    worker       text,
    error        text,
    -- The schedule that fired it.
    schedule     text,
    unique_key   text,
    trace_id     text,
    -- Kept for everything but a plain completion.
    payload      json,
    result       json
);
CREATE INDEX job_history_newest ON ops.job_history (finished_at DESC, id DESC);
CREATE INDEX job_history_outcome ON ops.job_history (outcome, finished_at DESC, id DESC);
CREATE INDEX job_history_queue ON ops.job_history (queue, finished_at DESC, id DESC);
CREATE INDEX job_history_kind ON ops.job_history (kind, finished_at DESC, id DESC);
CREATE INDEX job_history_job ON ops.job_history (job_id, id DESC);
CREATE INDEX job_history_schedule ON ops.job_history (schedule, id DESC) WHERE schedule IS NOT NULL;
