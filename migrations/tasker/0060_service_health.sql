-- How each watched service is, by its last answer. The leader writes; a service that is not watched any more has no row.
CREATE TABLE ops.service_health (
    service     text PRIMARY KEY CHECK (length(service) BETWEEN 1 AND 63),
    status      text NOT NULL CHECK (status IN ('healthy', 'degraded', 'down', 'unknown')),
    -- To the head of its answer; NULL where none came.
    latency_ms  double precision CHECK (latency_ms >= 0),
    -- url, http_status, note, counters: each where there is one.
    details     jsonb NOT NULL DEFAULT '{}'::jsonb CHECK (jsonb_typeof(details) = 'object'),
    checked_at  timestamptz NOT NULL,
    -- Since when it is in this status.
    since       timestamptz NOT NULL,
    -- Answers of one kind in a row: what opens and closes an alert. They outlive a leader.
    bad_run     integer NOT NULL DEFAULT 0 CHECK (bad_run >= 0),
    good_run    integer NOT NULL DEFAULT 0 CHECK (good_run >= 0),
    -- The first bad answer of the present trouble.
    bad_since   timestamptz
);

-- Alerts about the platform itself. At most one is open for a fingerprint.
CREATE TABLE ops.system_alerts (
    id          uuid PRIMARY KEY,
    tenant      text NOT NULL DEFAULT '__system__',
    kind        text NOT NULL DEFAULT 'SYSTEM_HEALTH',
    fingerprint text NOT NULL,
    service     text NOT NULL,
    severity    smallint NOT NULL DEFAULT 5 CHECK (severity BETWEEN 1 AND 5),
    -- When the trouble began, and when it was taken for trouble.
    since       timestamptz NOT NULL,
    opened_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at   timestamptz,
    -- status, note, and once it is closed how: resolved_at, resolution (recovered, unwatched).
    details     jsonb NOT NULL DEFAULT '{}'::jsonb CHECK (jsonb_typeof(details) = 'object'),
    CHECK (closed_at IS NULL OR closed_at >= opened_at)
);
CREATE UNIQUE INDEX system_alerts_open ON ops.system_alerts (fingerprint) WHERE closed_at IS NULL;
CREATE INDEX system_alerts_opened ON ops.system_alerts (opened_at DESC);
CREATE INDEX system_alerts_closed ON ops.system_alerts (closed_at) WHERE closed_at IS NOT NULL;
