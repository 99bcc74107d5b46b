-- What a leader learned about its providers, and its successor need not learn again.

-- Nothing is bought before this: of one machine type in one location that was out of stock, or, after a rate limit, of a
-- provider at all. Machine type and location are empty for the whole provider.
CREATE TABLE ops.provider_holds (
    kind     text NOT NULL CHECK (kind IN ('out_of_stock', 'rate_limit')),
    provider text NOT NULL,
    machine  text NOT NULL DEFAULT '',
    location text NOT NULL DEFAULT '',
    until    timestamptz NOT NULL,
    why      text NOT NULL,
    PRIMARY KEY (kind, provider, machine, location)
);

-- Servers with our labels that no row of ops.servers stands for: found by the provider's list.sh.
CREATE TABLE ops.orphans (
    provider    text NOT NULL,
    provider_id text NOT NULL,
    name        text NOT NULL,
    group_name  text NOT NULL,
    -- The operation in its label; NULL: it bears none, or no id.
    operation   uuid,
    first_seen  timestamptz NOT NULL,
    last_seen   timestamptz NOT NULL,
    -- How many sweeps in a row have seen it.
    sightings   integer NOT NULL DEFAULT 1 CHECK (sightings > 0),
    -- Why it is not deleted, or that it is being.
    verdict     text NOT NULL,
    -- When its deletion was last asked for, and what came of it.
    asked_at    timestamptz,
    outcome     text,
    PRIMARY KEY (provider, provider_id)
);
CREATE INDEX orphans_last_seen ON ops.orphans (last_seen);

-- An orphan is judged by the server that its label's operation made.
CREATE INDEX servers_made_by ON ops.servers (made_by);
