-- Recurring jobs. The leader of voiceai-tasker fires them; each slot becomes one row of ops.outbox in the very statement
-- that moves `last_slot`, so a slot fires once however many schedulers and restarts there are.
CREATE TABLE ops.schedules (
    name                 text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,63}$'),
    kind                 text NOT NULL CHECK (kind ~ '^[A-Za-z0-9._:-]{1,128}$'),
    queue                text NOT NULL DEFAULT 'default' CHECK (queue ~ '^[A-Za-z0-9._-]{1,64}$'),
    payload              jsonb NOT NULL DEFAULT '{}'::jsonb,
    priority             smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN 0 AND 10),
    expression           text NOT NULL,
    zone                 text NOT NULL DEFAULT 'UTC',
    missed               text NOT NULL DEFAULT 'once' CHECK (missed IN ('skip', 'once', 'catch_up')),
    catch_up_max         smallint CHECK (catch_up_max BETWEEN 1 AND 100),
    overlap              text NOT NULL DEFAULT 'skip' CHECK (overlap IN ('allow', 'skip')),
    enabled              boolean NOT NULL DEFAULT true,
    -- Nothing fires within [paused_since, paused_until), and nothing of it is made up for later.
    paused_since         timestamptz,
    paused_until         timestamptz,
    paused_reason        text,
    -- An operator has set this schedule: what a release declares no longer changes it.
    overridden           boolean NOT NULL DEFAULT false,
    -- Rises with every change of the definition; a firing that was decided on an older one is refused.
    revision             bigint NOT NULL DEFAULT 1,
    -- Every slot up to here is decided: fired or dropped.
    last_slot            timestamptz NOT NULL DEFAULT now(),
    last_fired_at        timestamptz,
    last_job_id          text,
    -- Counted since the row exists.
    fired_total          bigint NOT NULL DEFAULT 0,
    missed_total         bigint NOT NULL DEFAULT 0,
    overlapped_total     bigint NOT NULL DEFAULT 0,
    last_success_at      timestamptz,
    last_failure_at      timestamptz,
    last_error           text,
    consecutive_failures integer NOT NULL DEFAULT 0,
    created_at           timestamptz NOT NULL DEFAULT now(),
    updated_at           timestamptz NOT NULL DEFAULT now(),
    CHECK ((missed = 'catch_up') = (catch_up_max IS NOT NULL)),
    CHECK ((paused_since IS NULL) = (paused_until IS NULL)),
    CHECK (paused_until > paused_since)
);

-- The scheduler sleeps until the next slot; a change of a definition wakes it. Its own bookkeeping does not.
CREATE FUNCTION ops.schedules_wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('voiceai_schedules', '');
    RETURN NULL;
END $$;
CREATE TRIGGER schedules_wake AFTER INSERT OR DELETE ON ops.schedules
    FOR EACH STATEMENT EXECUTE FUNCTION ops.schedules_wake();
CREATE TRIGGER schedules_wake_update
    AFTER UPDATE OF kind, queue, payload, priority, expression, zone, missed, catch_up_max, overlap, enabled,
        paused_since, paused_until
    ON ops.schedules FOR EACH STATEMENT EXECUTE FUNCTION ops.schedules_wake();

-- Rows that were changed by plain SQL count as a new definition as well.
CREATE FUNCTION ops.schedules_revise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.kind, NEW.queue, NEW.payload, NEW.priority, NEW.expression, NEW.zone, NEW.missed, NEW.catch_up_max,
        NEW.overlap, NEW.enabled, NEW.paused_since, NEW.paused_until)
       IS DISTINCT FROM
       (OLD.kind, OLD.queue, OLD.payload, OLD.priority, OLD.expression, OLD.zone, OLD.missed, OLD.catch_up_max,
        OLD.overlap, OLD.enabled, OLD.paused_since, OLD.paused_until)
    THEN
        NEW.revision := OLD.revision + 1;
        NEW.updated_at := now();
        -- Times of a new plan that lie in the past are not due, and neither is what passed while it was switched off.
        IF (NEW.expression, NEW.zone) IS DISTINCT FROM (OLD.expression, OLD.zone)
           OR (NEW.enabled AND NOT OLD.enabled)
        THEN
            NEW.last_slot := GREATEST(NEW.last_slot, now());
        END IF;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER schedules_revise BEFORE UPDATE ON ops.schedules
    FOR EACH ROW EXECUTE FUNCTION ops.schedules_revise();
