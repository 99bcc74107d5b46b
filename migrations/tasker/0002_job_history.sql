-- What became of jobs. Written in batches after the fact; a job's live state is the queue's, in Redis.
CREATE TABLE ops.job_history (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id       text NOT NULL,
    queue        text NOT NULL,
    kind         text NOT NULL,
    tenant       text,
    -- completed, dead, cancelled, discarded, replayed.
    outcome      text NOT NULL,
    -- Of dead jobs: exhausted, discarded_by_handler, poison, no_handler, bad_payload. Of others: who or why.
    reason       text,
    -- Attempts begun, the last included.
    attempts     integer NOT NULL DEFAULT 0,
    enqueued_at  timestamptz,
    started_at   timestamptz,
    finished_at  timestamptz NOT NULL DEFAULT now(),
    -- Of the last attempt.
    duration_ms  bigint,
    worker       text,
    error        text,
    -- The job this one descends from: a replay's origin, a flow's parent.
    parent_id    text,
    -- Its schedule, where a schedule fired it.
    schedule     text,
    trace_id     text,
    -- Kept for jobs that a person may want to enqueue again.
    payload      json
);
CREATE INDEX job_history_newest ON ops.job_history (finished_at DESC, id DESC);
CREATE INDEX job_history_outcome ON ops.job_history (outcome, finished_at DESC, id DESC);
CREATE INDEX job_history_queue ON ops.job_history (queue, finished_at DESC, id DESC);
CREATE INDEX job_history_kind ON ops.job_history (kind, finished_at DESC, id DESC);
CREATE INDEX job_history_job ON ops.job_history (job_id, id DESC);
CREATE INDEX job_history_schedule ON ops.job_history (schedule, id DESC) WHERE schedule IS NOT NULL;
