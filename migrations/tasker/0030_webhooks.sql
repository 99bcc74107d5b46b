-- Where tenants want their events posted to. `events` are patterns in which * stands for anything: call.*, or * alone.
CREATE TABLE ops.webhook_endpoints (
    id              uuid PRIMARY KEY,
    tenant          text NOT NULL CHECK (tenant <> '' AND length(tenant) <= 200),
    url             text NOT NULL CHECK (length(url) <= 2000),
    events          text[] NOT NULL CHECK (cardinality(events) BETWEEN 1 AND 100),
    description     text,
    -- NULL: as the settings say.
    concurrency     integer CHECK (concurrency > 0),
    timeout_ms      integer CHECK (timeout_ms > 0),
    state           text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'disabled')),
    disabled_reason text,
    disabled_by     text,
    disabled_at     timestamptz,
    -- Failures since the last success, and since when there are only failures.
    failures        integer NOT NULL DEFAULT 0,
    failing_since   timestamptz,
    -- Nothing is posted before then: the circuit is open, or the endpoint asked for time.
    resting_until   timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CHECK ((state = 'disabled') = (disabled_at IS NOT NULL)),
    CHECK ((failures = 0) = (failing_since IS NULL))
);
CREATE INDEX webhook_endpoints_of_tenant ON ops.webhook_endpoints (tenant, id);
CREATE INDEX webhook_endpoints_resting ON ops.webhook_endpoints (resting_until) WHERE resting_until IS NOT NULL;
-- Those that a success says something new of: few, so that most successes write to no endpoint.
CREATE INDEX webhook_endpoints_troubled ON ops.webhook_endpoints (id) WHERE failures > 0 OR resting_until IS NOT NULL;

-- What deliveries are signed with: the newest, and those that a rotation replaced, until they expire.
CREATE TABLE ops.webhook_secrets (
    endpoint_id uuid NOT NULL REFERENCES ops.webhook_endpoints (id) ON DELETE CASCADE,
    number      integer NOT NULL,
    secret      text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz,
    PRIMARY KEY (endpoint_id, number)
);

-- An event, as it is posted: `body` is signed and sent byte for byte the same each time.
CREATE TABLE ops.webhook_events (
    seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant      text NOT NULL,
    id          text NOT NULL CHECK (length(id) BETWEEN 1 AND 200),
    type        text NOT NULL,
    body        text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, id)
);
CREATE INDEX webhook_events_created ON ops.webhook_events (created_at);

-- One event on its way to one endpoint, until it ends. A claim does not write here.
CREATE TABLE ops.webhook_open (
    id          uuid PRIMARY KEY,
    -- Drawn anew whenever the delivery begins to wait. What is claimed is a ticket: a delivery whose ticket no lot names is free.
    ticket      bigint GENERATED ALWAYS AS IDENTITY,
    endpoint_id uuid NOT NULL REFERENCES ops.webhook_endpoints (id) ON DELETE CASCADE,
    event_seq   bigint NOT NULL REFERENCES ops.webhook_events (seq) ON DELETE CASCADE,
    tenant      text NOT NULL,
    event_id    text NOT NULL,
    event_type  text NOT NULL,
    -- Of its body; what a process holds ahead is bounded by it.
    bytes       integer NOT NULL,
    -- Attempts that ended, and how far up the ladder the next one stands; a replay begins at its foot again.
    attempts    integer NOT NULL DEFAULT 0,
    rung        integer NOT NULL DEFAULT 0,
    due_at      timestamptz NOT NULL,
    last_status integer,
    last_error  text,
    replays     integer NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_analyze_scale_factor = 0.05);
CREATE INDEX webhook_open_of_endpoint ON ops.webhook_open (endpoint_id, due_at);
CREATE INDEX webhook_open_due ON ops.webhook_open (due_at);
CREATE INDEX webhook_open_of_event ON ops.webhook_open (event_seq);

-- What one look of one process claimed: a lot, and who knows its id may write the ends of its deliveries. When it expires while some
-- are still open under the same ticket, the process is gone: its row is deleted, and they are free. It is deleted as well once all of
-- them have ended.
CREATE TABLE ops.webhook_claims (
    id         uuid PRIMARY KEY,
    worker     uuid NOT NULL,
    deliveries uuid[] NOT NULL,
    tickets    bigint[] NOT NULL CHECK (cardinality(tickets) = cardinality(deliveries)),
    claimed_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
-- Random bytes do not get smaller, and numbers are read again with each look.
ALTER TABLE ops.webhook_claims ALTER COLUMN deliveries SET STORAGE EXTERNAL, ALTER COLUMN tickets SET STORAGE EXTERNAL;

-- One event that came to its end at one endpoint. Written once; a replay moves a dead one back. It refers to nothing, so that writing
-- one asks no other table: whoever deletes an endpoint deletes these.
CREATE TABLE ops.webhook_ended (
    id          uuid PRIMARY KEY,
    endpoint_id uuid NOT NULL,
    event_seq   bigint NOT NULL,
    tenant      text NOT NULL,
    event_id    text NOT NULL,
    event_type  text NOT NULL,
    state       text NOT NULL CHECK (state IN ('delivered', 'dead')),
    attempts    integer NOT NULL,
    dead_reason text,
    last_status integer,
    last_error  text,
    replays     integer NOT NULL,
    created_at  timestamptz NOT NULL,
    ended_at    timestamptz NOT NULL,
    -- Of the attempt that was taken: it is the last one, and so has no row of its own.
    response    text,
    address     text,
    duration_ms bigint,
    CHECK ((state = 'dead') = (dead_reason IS NOT NULL)),
    CHECK ((state = 'delivered') = (duration_ms IS NOT NULL))
);
CREATE INDEX webhook_ended_at ON ops.webhook_ended (ended_at);
CREATE INDEX webhook_ended_of_endpoint ON ops.webhook_ended (endpoint_id, id);
CREATE INDEX webhook_ended_dead ON ops.webhook_ended (ended_at, id) WHERE state = 'dead';
CREATE INDEX webhook_ended_dead_of_endpoint ON ops.webhook_ended (endpoint_id) WHERE state = 'dead';
CREATE INDEX webhook_ended_dead_of_event ON ops.webhook_ended (event_seq) WHERE state = 'dead';

-- Both, as people look at them.
CREATE VIEW ops.webhook_deliveries AS
    SELECT id, endpoint_id, event_seq, tenant, event_id, event_type,
        CASE WHEN ticket IN (SELECT unnest(tickets) FROM ops.webhook_claims) THEN 'active' ELSE 'waiting' END AS state,
        attempts, due_at, NULL::text AS dead_reason, last_status, last_error, replays, created_at, NULL::timestamptz AS ended_at
    FROM ops.webhook_open
    UNION ALL
    SELECT id, endpoint_id, event_seq, tenant, event_id, event_type, state,
        attempts, NULL::timestamptz, dead_reason, last_status, last_error, replays, created_at, ended_at
    FROM ops.webhook_ended;

-- Every attempt that was not taken, written with its end; `lost`: its process ended before it could say. It refers to nothing, for the
-- same reason.
CREATE TABLE ops.webhook_failures (
    delivery_id    uuid NOT NULL,
    attempt_no     integer NOT NULL,
    started_at     timestamptz NOT NULL,
    ended_at       timestamptz NOT NULL,
    outcome        text NOT NULL,
    status         integer,
    error          text,
    response       text,
    address        text,
    retry_after_ms bigint,
    duration_ms    bigint,
    PRIMARY KEY (delivery_id, attempt_no)
);

-- Every attempt that ended.
CREATE VIEW ops.webhook_attempts AS
    SELECT * FROM ops.webhook_failures
    UNION ALL
    SELECT id, attempts, ended_at - duration_ms * interval '1 millisecond', ended_at, 'delivered', last_status, NULL, response, address,
        NULL, duration_ms
    FROM ops.webhook_ended WHERE state = 'delivered';
