-- Servers that voiceai-scaler made. A server's status is a pure map of its operation's state and is written in the same
-- statement. Rows stay after a server's end, so that its name can rest and its history can be read.
CREATE TABLE ops.servers (
    id              uuid PRIMARY KEY,
    -- <environment>-<service>-<ordinal>: fixed before the provider is asked for the first time.
    name            text NOT NULL CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    group_id        text NOT NULL,
    group_name      text NOT NULL,
    service         text NOT NULL CHECK (service IN ('voice', 'api')),
    status          text NOT NULL CHECK (status IN ('booting', 'active', 'draining', 'leaving', 'failed', 'gone')),
    -- The operation that made it: the label by which the provider's scripts know it is ours.
    made_by         uuid NOT NULL,
    provider        text NOT NULL,
    provider_id     text,
    ip              text,
    private_ip      text,
    machine_type    text,
    location        text,
    -- What the group's policy said when the server was asked for: an operation ends by it even when the group is gone.
    spec            jsonb NOT NULL CHECK (jsonb_typeof(spec) = 'object'),
    protected_until timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    in_service_at   timestamptz,
    gone_at         timestamptz,
    CHECK ((status = 'gone') = (gone_at IS NOT NULL))
);
CREATE UNIQUE INDEX servers_name ON ops.servers (name) WHERE status <> 'gone';
CREATE INDEX servers_gone ON ops.servers (gone_at) WHERE status = 'gone';

-- One row for each making or removal of one server, written before each of its effects.
CREATE TABLE ops.operations (
    id                 uuid PRIMARY KEY,
    server_id          uuid NOT NULL REFERENCES ops.servers (id),
    kind               text NOT NULL CHECK (kind IN ('up', 'down')),
    state              text NOT NULL,
    -- Rises with every write: a step is written only if the row is still as it was read.
    version            bigint NOT NULL DEFAULT 1,
    -- The term of the last leader that wrote it; NULL: a person's command did.
    term               bigint,
    actor              text NOT NULL,
    reason             text NOT NULL,
    -- Settings of this removal: drain_timeout_ms, at_deadline.
    settings           jsonb NOT NULL DEFAULT '{}'::jsonb CHECK (jsonb_typeof(settings) = 'object'),
    candidate_index    integer NOT NULL DEFAULT 0 CHECK (candidate_index >= 0),
    attempt            integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    -- When the provider was last asked to make or delete: its script may be at work for one time limit from here on.
    intent_at          timestamptz,
    -- The newest atMs under the server's name before it was asked for, Unix ms; NULL: there was none.
    heartbeat_floor_ms bigint,
    -- End of the wait that the state is in.
    deadline           timestamptz,
    -- Nothing is tried before this.
    not_before         timestamptz,
    cancel_requested   boolean NOT NULL DEFAULT false,
    error_code         text,
    error_text         text,
    created_at         timestamptz NOT NULL DEFAULT now(),
    state_at           timestamptz NOT NULL DEFAULT now(),
    finished_at        timestamptz,
    CHECK (
        (kind = 'up' AND state IN ('planned', 'secrets', 'rendered', 'requested', 'created', 'running', 'heartbeat',
                                   'routed', 'done', 'failed', 'cleaning', 'failed_clean'))
        OR (kind = 'down' AND state IN ('planned', 'preflight', 'unrouted', 'draining', 'drained', 'forced', 'unlisted',
                                        'deleting', 'deleted', 'cleaned', 'done', 'failed', 'cancelling', 'cancelled'))
    ),
    CHECK (
        (finished_at IS NOT NULL)
        = (state IN ('done', 'failed_clean', 'cancelled') OR (kind = 'down' AND state = 'failed'))
    )
);
CREATE UNIQUE INDEX operations_open ON ops.operations (server_id) WHERE finished_at IS NULL;
CREATE INDEX operations_server ON ops.operations (server_id, created_at DESC);
CREATE INDEX operations_created ON ops.operations (created_at);

-- What happened to an operation, one row a step.
CREATE TABLE ops.operation_steps (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    operation_id uuid NOT NULL REFERENCES ops.operations (id) ON DELETE CASCADE,
    at           timestamptz NOT NULL DEFAULT now(),
    term         bigint,
    from_state   text,
    event        text NOT NULL,
    to_state     text NOT NULL,
    note         text
);
CREATE INDEX operation_steps_operation ON ops.operation_steps (operation_id, id);
CREATE INDEX operation_steps_at ON ops.operation_steps (at);

-- One row for each evaluation of a group: what was measured, wished and done, or why nothing was.
CREATE TABLE ops.decisions (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL,
    term       bigint NOT NULL,
    group_id   text NOT NULL,
    group_name text NOT NULL,
    action     text NOT NULL CHECK (action IN ('hold', 'add', 'remove', 'invalid')),
    reason     text NOT NULL,
    summary    text NOT NULL,
    details    jsonb NOT NULL
);
CREATE INDEX decisions_at ON ops.decisions (at);
CREATE INDEX decisions_group ON ops.decisions (group_name, id DESC);

-- What outlives a leader of what was decided about a group.
CREATE TABLE ops.scaling_groups (
    group_id         text PRIMARY KEY,
    group_name       text NOT NULL,
    last_up_at       timestamptz,
    last_down_at     timestamptz,
    -- Nothing is bought before this, and why: quota, rate limit, a circuit that opened.
    no_creates_until timestamptz,
    no_creates_why   text,
    -- How often the circuit has opened in a row; its rest doubles each time.
    circuit_opened   integer NOT NULL DEFAULT 0,
    circuit_since    timestamptz,
    CHECK ((no_creates_until IS NULL) = (no_creates_why IS NULL))
);

-- A person's pause of one group, or of all (`*`).
CREATE TABLE ops.scaling_pauses (
    target     text PRIMARY KEY,
    until      timestamptz NOT NULL,
    actor      text NOT NULL,
    reason     text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
