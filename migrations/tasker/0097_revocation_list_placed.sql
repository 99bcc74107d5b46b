-- When a revocation list was last put in place, and until when it is good: the number alone says only that one was begun.
ALTER TABLE ops.revocation_lists
    ADD COLUMN placed_at   timestamptz,
    ADD COLUMN next_update timestamptz,
    ADD COLUMN revoked     bigint;
-- What was published before is taken for placed; an hour later it is known.
UPDATE ops.revocation_lists SET placed_at = published_at, next_update = published_at + interval '2 hours';
