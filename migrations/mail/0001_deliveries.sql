-- Outgoing mail. A delivery is what a caller asked for; each of its recipients is a row of its own, with its own attempts and
-- its own end. The attempts table is the work: a `scheduled` row is due at `due_at`, an `in_progress` one is somebody's claim.
--
-- The schema may have been made by the database's owner for a role that may not make any.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'mail') THEN
        CREATE SCHEMA mail;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE insufficient_privilege USING MESSAGE =
        'this role may not create the schema `mail`; let the database''s owner run: CREATE SCHEMA mail AUTHORIZATION <role>';
END $$;

-- What a delivery's recipients together say. The same rule as DeliveryStatus::derive; a test compares them.
CREATE FUNCTION mail.derived_status(
    payload_mode text, open_count int, sent int, suppressed int, failed int, dead int, unknown int
) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN open_count > 0 THEN CASE WHEN payload_mode = 'template' THEN 'rendered' ELSE 'queued' END
        WHEN unknown > 0 THEN 'unknown'
        WHEN dead > 0 THEN 'dead_letter'
        WHEN failed > 0 THEN 'failed'
        WHEN sent > 0 THEN 'sent'
        ELSE 'suppressed'
    END
$$;

CREATE TABLE mail.deliveries (
    -- The caller's own id.
    delivery_id         text PRIMARY KEY CHECK (octet_length(delivery_id) BETWEEN 1 AND 128 AND delivery_id !~ '[[:space:][:cntrl:]]'),
    source              text NOT NULL CHECK (source IN ('authsession', 'notification', 'email_queue', 'platform', 'operator_resend')),
    idempotency_key     text NOT NULL CHECK (octet_length(idempotency_key) BETWEEN 1 AND 256),
    -- SHA-256 of what was asked for: the same key with another content is refused.
    request_fingerprint bytea NOT NULL CHECK (octet_length(request_fingerprint) = 32),
    payload_mode        text NOT NULL CHECK (payload_mode IN ('rendered', 'template')),
    template_id         text,
    -- As asked for, and as found.
    locale              text,
    rendered_locale     text,
    class               text NOT NULL CHECK (class IN ('auth', 'billing', 'transactional', 'notification', 'system', 'marketing')),
    tenant              text CHECK (octet_length(tenant) BETWEEN 1 AND 64),
    priority            smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN 0 AND 10),
    sender              text NOT NULL,
    subject             text NOT NULL,
    -- In the header Message-ID of every attempt, without its angle brackets.
    message_id          text NOT NULL UNIQUE,
    request_id          text,
    trace_id            text,
    -- The delivery that an operator sent again.
    resend_of           text,
    requested_at        timestamptz,
    -- To the millisecond, which lists are ordered and continued by.
    created_at          timestamptz NOT NULL DEFAULT date_trunc('milliseconds', clock_timestamp()),
    updated_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Not tried again from here on.
    expires_at          timestamptz NOT NULL,
    -- Not NULL while an attempt is to come: when the next one is due.
    next_attempt_at     timestamptz,
    -- When the last recipient ended.
    finished_at         timestamptz,
    recipients          int NOT NULL CHECK (recipients > 0),
    open_count          int NOT NULL CHECK (open_count >= 0),
    sent_count          int NOT NULL DEFAULT 0 CHECK (sent_count >= 0),
    suppressed_count    int NOT NULL DEFAULT 0 CHECK (suppressed_count >= 0),
    failed_count        int NOT NULL DEFAULT 0 CHECK (failed_count >= 0),
    dead_count          int NOT NULL DEFAULT 0 CHECK (dead_count >= 0),
    unknown_count       int NOT NULL DEFAULT 0 CHECK (unknown_count >= 0),
    status              text NOT NULL GENERATED ALWAYS AS (mail.derived_status(
                            payload_mode, open_count, sent_count, suppressed_count, failed_count, dead_count, unknown_count
                        )) STORED,
    UNIQUE (source, idempotency_key),
    CHECK (status IN ('queued', 'rendered', 'sent', 'suppressed', 'failed', 'dead_letter', 'unknown')),
    CHECK (open_count + sent_count + suppressed_count + failed_count + dead_count + unknown_count = recipients),
    CHECK ((payload_mode = 'template') = (template_id IS NOT NULL)),
    CHECK ((open_count = 0) = (finished_at IS NOT NULL)),
    CHECK (open_count > 0 OR next_attempt_at IS NULL)
);
CREATE INDEX deliveries_due ON mail.deliveries (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX deliveries_newest ON mail.deliveries (created_at DESC, delivery_id DESC);
CREATE INDEX deliveries_troubled ON mail.deliveries (status, created_at DESC)
    WHERE status IN ('failed', 'dead_letter', 'unknown');
CREATE INDEX deliveries_finished ON mail.deliveries (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX deliveries_resent ON mail.deliveries (resend_of) WHERE resend_of IS NOT NULL;

-- What is sent, byte for byte the same in every attempt. Part 0 is everybody's; others exist only where each recipient has a
-- link of his own.
CREATE TABLE mail.delivery_payloads (
    delivery_id text NOT NULL REFERENCES mail.deliveries ON DELETE CASCADE,
    part        smallint NOT NULL CHECK (part >= 0),
    message     bytea NOT NULL,
    -- The command as it was accepted, to send it again.
    command     json,
    -- It shows what nobody may read once it was sent, such as a login code.
    secret      boolean NOT NULL DEFAULT false,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (delivery_id, part)
);
CREATE INDEX delivery_payloads_age ON mail.delivery_payloads (created_at);
CREATE INDEX delivery_payloads_secret ON mail.delivery_payloads (created_at) WHERE secret;
-- Attachments are encoded already: compressing them again costs time and gains little.
ALTER TABLE mail.delivery_payloads ALTER COLUMN message SET STORAGE EXTERNAL;

CREATE TABLE mail.delivery_recipients (
    delivery_id    text NOT NULL REFERENCES mail.deliveries ON DELETE CASCADE,
    position       smallint NOT NULL CHECK (position >= 0),
    kind           text NOT NULL CHECK (kind IN ('to', 'cc', 'bcc')),
    address        text NOT NULL CHECK (octet_length(address) BETWEEN 3 AND 320),
    -- Lower case.
    domain         text NOT NULL,
    part           smallint NOT NULL DEFAULT 0,
    status         text NOT NULL DEFAULT 'open'
                   CHECK (status IN ('open', 'sent', 'suppressed', 'failed', 'dead_letter', 'unknown')),
    attempt_count  int NOT NULL DEFAULT 0 CHECK (attempt_count >= 0),
    -- How often a process ended in the middle of an attempt.
    crash_count    int NOT NULL DEFAULT 0 CHECK (crash_count >= 0),
    provider       text,
    provider_id    text,
    -- The last attempt in a few words.
    last_result    text,
    -- When it left the state open.
    ended_at       timestamptz,
    PRIMARY KEY (delivery_id, position),
    CHECK ((status = 'open') = (ended_at IS NULL))
);
CREATE INDEX delivery_recipients_address ON mail.delivery_recipients (lower(address));

CREATE TABLE mail.attempts (
    delivery_id      text NOT NULL,
    position         smallint NOT NULL,
    attempt_no       int NOT NULL CHECK (attempt_no > 0),
    status           text NOT NULL CHECK (status IN ('scheduled', 'in_progress', 'provider_accepted', 'provider_rejected',
                         'transport_failed', 'timed_out', 'render_failed', 'unknown')),
    -- Where the ladder stands: attempts that nobody but the provider was to blame for do not climb it.
    rung             int NOT NULL DEFAULT 0 CHECK (rung >= 0),
    priority         smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN 0 AND 10),
    accepted_at      timestamptz NOT NULL,
    due_at           timestamptz NOT NULL,
    -- What keeps it from being claimed although it was due: held, domain:<name> or tenant:<name>. It comes back at due_at, or
    -- when that is over.
    parked           text,
    worker_id        uuid,
    claim_token      uuid,
    claim_expires_at timestamptz,
    started_at       timestamptz,
    -- From here on nobody can say whether the mail arrived, until somebody says so.
    content_began_at timestamptz,
    finished_at      timestamptz,
    provider         text,
    phase            text CHECK (phase IN ('connect', 'starttls', 'auth', 'mail', 'rcpt', 'data', 'final')),
    reason           text,
    code             int,
    enhanced         text,
    detail           text CHECK (octet_length(detail) <= 2048),
    host             text,
    tls              text,
    duration_ms      bigint CHECK (duration_ms >= 0),
    provider_id      text,
    PRIMARY KEY (delivery_id, position, attempt_no),
    FOREIGN KEY (delivery_id, position) REFERENCES mail.delivery_recipients ON DELETE CASCADE,
    CHECK ((status = 'in_progress') = (claim_token IS NOT NULL AND finished_at IS NULL)),
    CHECK ((status IN ('scheduled', 'in_progress')) = (finished_at IS NULL)),
    CHECK (status <> 'in_progress' OR (worker_id IS NOT NULL AND claim_expires_at IS NOT NULL AND started_at IS NOT NULL)),
    CHECK (parked IS NULL OR status = 'scheduled')
);
CREATE INDEX attempts_due ON mail.attempts (priority, due_at) WHERE status = 'scheduled';
CREATE INDEX attempts_parked ON mail.attempts (parked) WHERE parked IS NOT NULL;
CREATE INDEX attempts_claimed ON mail.attempts (worker_id) WHERE status = 'in_progress';
-- An attempt runs, or waits, once.
CREATE UNIQUE INDEX attempts_one_open ON mail.attempts (delivery_id, position) WHERE status IN ('scheduled', 'in_progress');

-- Given up, for a person to look at. At most one row for a delivery, however many of its recipients ended so.
CREATE TABLE mail.dead_letters (
    delivery_id text PRIMARY KEY REFERENCES mail.deliveries ON DELETE CASCADE,
    reason      text NOT NULL CHECK (reason IN ('exhausted', 'expired', 'poison')),
    error       text NOT NULL,
    archived_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- How often it came here, and how often it was sent back.
    deaths      int NOT NULL DEFAULT 1 CHECK (deaths > 0),
    replays     int NOT NULL DEFAULT 0 CHECK (replays >= 0),
    -- Not NULL while it is out again.
    replayed_at timestamptz
);
CREATE INDEX dead_letters_newest ON mail.dead_letters (archived_at DESC) WHERE replayed_at IS NULL;

-- Commands that no delivery could be made of.
CREATE TABLE mail.malformed_commands (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream          text NOT NULL,
    stream_entry_id text NOT NULL,
    delivery_id     text,
    source          text,
    idempotency_key text,
    failure_code    text NOT NULL,
    failure_message text NOT NULL,
    -- The fields as they came, long ones cut.
    fields          json NOT NULL,
    recorded_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (stream, stream_entry_id)
);
CREATE INDEX malformed_commands_newest ON mail.malformed_commands (recorded_at DESC);

-- Who must not be written to. An empty tenant or class stands for all.
CREATE TABLE mail.suppressions (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Lower case.
    address     text NOT NULL CHECK (address = lower(address) AND octet_length(address) BETWEEN 3 AND 320),
    tenant      text NOT NULL DEFAULT '',
    class       text NOT NULL DEFAULT '' CHECK (class IN ('', 'auth', 'billing', 'transactional', 'notification', 'system', 'marketing')),
    reason      text NOT NULL CHECK (reason IN ('hard_bounce', 'soft_bounce', 'complaint', 'unsubscribe', 'operator')),
    detail      text,
    -- The delivery or the feedback's id that it came from, or who wrote it.
    origin      text,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- NULL: for good.
    expires_at  timestamptz,
    UNIQUE (address, tenant, class)
);
CREATE INDEX suppressions_expiring ON mail.suppressions (expires_at) WHERE expires_at IS NOT NULL;

-- Feedback that was taken in, so that the same message counts once.
CREATE TABLE mail.feedback (
    message_id  text PRIMARY KEY,
    kind        text NOT NULL,
    provider_id text,
    content     json NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX feedback_newest ON mail.feedback (received_at);

-- What must not be sent through, or to, for a while. A fault of the provider makes an automatic row; people make the others.
CREATE TABLE mail.pauses (
    scope      text NOT NULL CHECK (scope IN ('provider', 'domain', 'tenant')),
    subject    text NOT NULL CHECK (octet_length(subject) BETWEEN 1 AND 320),
    automatic  boolean NOT NULL,
    reason     text NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    until      timestamptz NOT NULL,
    -- Faults in a row, by which an automatic pause grows.
    faults     int NOT NULL DEFAULT 0 CHECK (faults >= 0),
    PRIMARY KEY (scope, subject, automatic)
);

-- How fast attempts start, over all processes: when the next one would, were there no burst.
CREATE TABLE mail.pace (
    provider text PRIMARY KEY,
    next_at  timestamptz NOT NULL
);

-- Processes that send. `beat` rises while one lives; its claims are taken back once others have seen it stand still.
CREATE TABLE mail.workers (
    worker_id   uuid PRIMARY KEY,
    instance_id text NOT NULL,
    host        text NOT NULL,
    beat        bigint NOT NULL DEFAULT 0,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
