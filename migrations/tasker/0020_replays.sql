-- One row for each replay that was begun: what was selected, by whom and why, and how far it came. Rows stay: they are
-- the lineage of what was replayed and the proof that lets a larger replay of the same selection begin.
CREATE TABLE ops.replays (
    id              uuid PRIMARY KEY,
    subject         text NOT NULL,
    filter          jsonb NOT NULL,
    version         text NOT NULL,
    actor           text NOT NULL,
    reason          text NOT NULL,
    item_limit      integer NOT NULL CHECK (item_limit > 0),
    per_second      double precision NOT NULL CHECK (per_second > 0),
    matched         bigint NOT NULL,
    state           text NOT NULL CHECK (state IN ('running', 'released', 'stopped')),
    stop_reason     text,
    deaths_forgiven integer NOT NULL DEFAULT 0,
    -- Who is carrying it out; another may go on with it once this has passed.
    runner          text,
    runner_until    timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CHECK ((state = 'stopped') = (stop_reason IS NOT NULL))
);
CREATE INDEX replays_proof ON ops.replays (subject, created_at DESC);

-- The items of a replay in the order in which they go back. `releasing` is written before the effect and `released`
-- after it, so that whoever goes on after a crash looks at that one item again.
CREATE TABLE ops.replay_items (
    replay_id   uuid NOT NULL REFERENCES ops.replays (id) ON DELETE CASCADE,
    position    integer NOT NULL,
    place       text NOT NULL,
    item_id     text NOT NULL,
    content     jsonb,
    state       text NOT NULL DEFAULT 'pending'
                CHECK (state IN ('pending', 'releasing', 'released', 'completed', 'died', 'skipped', 'gone')),
    detail      text,
    released_at timestamptz,
    settled_at  timestamptz,
    PRIMARY KEY (replay_id, position)
);
CREATE INDEX replay_items_open ON ops.replay_items (replay_id, position)
    WHERE state IN ('pending', 'releasing', 'released');
