-- Leader terms: the one place a term's number comes from. `held_since` is set while a leader elected after the database
-- went back in time (restored from a backup) may not act until a person releases it.
CREATE TABLE ops.leader_terms (
    name        text PRIMARY KEY,
    term        bigint NOT NULL CHECK (term > 0),
    holder      text NOT NULL,
    host        text NOT NULL,
    pid         integer NOT NULL,
    elected_at  timestamptz NOT NULL DEFAULT now(),
    held_since  timestamptz,
    held_reason text,
    CHECK ((held_since IS NULL) = (held_reason IS NULL))
);

-- Which environment this database belongs to. One row, written by the first start.
CREATE TABLE ops.installation (
    singleton       boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    environment     text NOT NULL,
    installation_id uuid NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now()
);

-- Who changed what, and why.
CREATE TABLE ops.audit (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT now(),
    service text NOT NULL,
    actor   text NOT NULL,
    action  text NOT NULL,
    subject text NOT NULL,
    reason  text,
    details jsonb NOT NULL DEFAULT '{}'::jsonb
);
CREATE INDEX audit_at ON ops.audit (at DESC, id DESC);
