-- The outbox: jobs that are enqueued inside somebody's own SQL transaction, or while Redis is away. voiceai-tasker relays
-- each row to its queue exactly once, under the row's id as the job's id.
--
-- To enqueue from any program, in its own transaction:
--   INSERT INTO ops.outbox (queue, kind, payload) VALUES ('default', 'recording.process', '{"recording_id": 7}');
-- The role needs USAGE on schema ops and INSERT on this table. Wrong values are refused here, not later.
CREATE TABLE ops.outbox (
    -- The job's id. A caller may choose it; the same id is one job.
    id           text NOT NULL DEFAULT gen_random_uuid()::text PRIMARY KEY
                 CHECK (octet_length(id) BETWEEN 1 AND 128 AND id !~ '[[:space:][:cntrl:]]'),
    seq          bigint GENERATED ALWAYS AS IDENTITY,
    queue        text NOT NULL DEFAULT 'default' CHECK (queue ~ '^[A-Za-z0-9._-]{1,64}$'),
    kind         text NOT NULL CHECK (kind ~ '^[A-Za-z0-9._:-]{1,128}$'),
    -- Kept as it was written: json, not jsonb.
    payload      json NOT NULL DEFAULT '{}',
    priority     smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN 0 AND 10),
    -- Not before this instant.
    run_at       timestamptz,
    tenant       text CHECK (octet_length(tenant) BETWEEN 1 AND 64),
    -- key, unique, unique_mode, unique_ttl_ms: named and meant as in docs/protocol.md. remember_ms: how long the queue knows
    -- the id after the job has ended; a day when absent.
    options      jsonb NOT NULL DEFAULT '{}'::jsonb
                 CHECK (jsonb_typeof(options) = 'object'
                        AND options - ARRAY['key', 'unique', 'unique_mode', 'unique_ttl_ms', 'remember_ms'] = '{}'::jsonb
                        AND COALESCE(options ->> 'unique_mode', 'reject') IN ('reject', 'throttle', 'replace', 'latest')
                        AND COALESCE(jsonb_typeof(options -> 'key'), 'string') = 'string'
                        AND COALESCE(jsonb_typeof(options -> 'unique'), 'string') = 'string'
                        AND COALESCE(jsonb_typeof(options -> 'remember_ms'), 'number') = 'number'
                        AND COALESCE(jsonb_typeof(options -> 'unique_ttl_ms'), 'number') = 'number'),
    -- W3C traceparent of the code that enqueued it.
    traceparent  text CHECK (octet_length(traceparent) <= 128),
    -- A critical job is looked after until it has finished: when Redis loses it, it is relayed again.
    critical     boolean NOT NULL DEFAULT false,
    created_at   timestamptz NOT NULL DEFAULT now(),
    -- The relay looks at the row again from here on: a claim, or a wait after a failure, moves it.
    visible_at   timestamptz NOT NULL DEFAULT now(),
    relayed_at   timestamptz,
    -- A critical job has finished (completed, dead, cancelled, discarded).
    settled_at   timestamptz,
    attempts     integer NOT NULL DEFAULT 0,
    -- The queue will never take it, and why. A person deletes the row or corrects it and clears both.
    refused_at   timestamptz,
    last_error   text,
    CHECK (refused_at IS NULL OR last_error IS NOT NULL)
);
CREATE INDEX outbox_to_relay ON ops.outbox (seq) WHERE relayed_at IS NULL AND refused_at IS NULL;
CREATE INDEX outbox_to_settle ON ops.outbox (visible_at)
    WHERE critical AND relayed_at IS NOT NULL AND settled_at IS NULL;
CREATE INDEX outbox_relayed ON ops.outbox (relayed_at) WHERE relayed_at IS NOT NULL;

CREATE FUNCTION ops.outbox_wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('voiceai_outbox', '');
    RETURN NULL;
END $$;
CREATE TRIGGER outbox_wake AFTER INSERT ON ops.outbox
    FOR EACH STATEMENT EXECUTE FUNCTION ops.outbox_wake();
