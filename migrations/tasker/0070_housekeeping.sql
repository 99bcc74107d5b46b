-- What the upkeep of the platform's tables remembers of itself.

-- One row a sweep and table: what was deleted, and whether it came to its end.
CREATE TABLE ops.maintenance_log (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_name      text NOT NULL,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    completed_at  timestamptz,
    rows_affected bigint NOT NULL DEFAULT 0,
    status        text NOT NULL DEFAULT 'RUNNING' CHECK (status IN ('RUNNING', 'COMPLETED', 'FAILED')),
    error_message text,
    details       jsonb NOT NULL DEFAULT '{}',
    CHECK ((status = 'RUNNING') = (completed_at IS NULL))
);
CREATE INDEX maintenance_log_job ON ops.maintenance_log (job_name, started_at DESC);
CREATE INDEX maintenance_log_started ON ops.maintenance_log (started_at);

-- What was told or done already, where the platform's tables have no place for it: written in the transaction of the effect, so that
-- a job that is delivered twice does it once.
CREATE TABLE ops.housekeeping_marks (
    purpose text NOT NULL,
    subject text NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (purpose, subject)
);
CREATE INDEX housekeeping_marks_at ON ops.housekeeping_marks (at);
