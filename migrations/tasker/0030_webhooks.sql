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
    tenant      text NOT NULL,
    id          text NOT NULL CHECK (length(id) BETWEEN 1 AND 200),
    type        text NOT NULL,
    body        text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, id)
);
CREATE INDEX webhook_events_created ON ops.webhook_events (created_at);

-- One event on its way to one endpoint.
CREATE TABLE ops.webhook_deliveries (
    id               uuid PRIMARY KEY,
    endpoint_id      uuid NOT NULL REFERENCES ops.webhook_endpoints (id) ON DELETE CASCADE,
    tenant           text NOT NULL,
    event_id         text NOT NULL,
    event_type       text NOT NULL,
    state            text NOT NULL CHECK (state IN ('waiting', 'active', 'delivered', 'dead')),
    -- Attempts begun in all, and how far up the ladder the next one stands; a replay begins at its foot again.
    attempts         integer NOT NULL DEFAULT 0,
    rung             integer NOT NULL DEFAULT 0,
    due_at           timestamptz NOT NULL,
    claim_token      uuid,
    claim_expires_at timestamptz,
    dead_reason      text,
    last_status      integer,
    last_error       text,
    replays          integer NOT NULL DEFAULT 0,
    created_at       timestamptz NOT NULL DEFAULT now(),
    ended_at         timestamptz,
    UNIQUE (endpoint_id, event_id),
    FOREIGN KEY (tenant, event_id) REFERENCES ops.webhook_events (tenant, id) ON DELETE CASCADE,
    CHECK ((state = 'active') = (claim_token IS NOT NULL AND claim_expires_at IS NOT NULL)),
    CHECK ((state IN ('delivered', 'dead')) = (ended_at IS NOT NULL)),
    CHECK ((state = 'dead') = (dead_reason IS NOT NULL))
);
CREATE INDEX webhook_deliveries_waiting ON ops.webhook_deliveries (endpoint_id, due_at) WHERE state = 'waiting';
CREATE INDEX webhook_deliveries_due ON ops.webhook_deliveries (due_at) WHERE state = 'waiting';
CREATE INDEX webhook_deliveries_active ON ops.webhook_deliveries (endpoint_id, claim_expires_at) WHERE state = 'active';
CREATE INDEX webhook_deliveries_dead ON ops.webhook_deliveries (ended_at, id) WHERE state = 'dead';
CREATE INDEX webhook_deliveries_ended ON ops.webhook_deliveries (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX webhook_deliveries_of_event ON ops.webhook_deliveries (tenant, event_id);

-- Every attempt, written when it begins. `outcome` stays NULL while it is under way; `lost`: its process ended before it could say.
CREATE TABLE ops.webhook_attempts (
    delivery_id    uuid NOT NULL REFERENCES ops.webhook_deliveries (id) ON DELETE CASCADE,
    attempt_no     integer NOT NULL,
    started_at     timestamptz NOT NULL,
    ended_at       timestamptz,
    outcome        text,
    status         integer,
    error          text,
    response       text,
    address        text,
    retry_after_ms bigint,
    duration_ms    bigint,
    PRIMARY KEY (delivery_id, attempt_no)
);
