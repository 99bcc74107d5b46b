-- What operators have set for a queue: limits, pauses. The leader copies it into Redis, where the workers read it, so that
-- it survives a Redis that was emptied. NULL in `value` means: set by nobody, or lifted again.
CREATE TABLE ops.queue_settings (
    queue           text NOT NULL CHECK (queue ~ '^[A-Za-z0-9._-]{1,64}$'),
    name            text NOT NULL CHECK (name IN ('worker_concurrency', 'rate', 'key_concurrency',
                                                  'paused', 'producers_paused', 'draining')),
    value           text,
    -- Holds instead of `value` until this time; NULL text with a time means: nothing holds until then.
    temporary       text,
    temporary_until timestamptz,
    updated_by      text NOT NULL,
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (queue, name),
    CHECK (temporary IS NULL OR temporary_until IS NOT NULL)
);
