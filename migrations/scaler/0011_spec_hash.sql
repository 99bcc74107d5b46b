-- The policy of a server's making is some hundred bytes that the servers of a group share: an evaluation reads which one it is
-- for every server, and the policy itself only once.
ALTER TABLE ops.servers
    ADD COLUMN spec_hash bigint NOT NULL GENERATED ALWAYS AS (hashtextextended(spec::text COLLATE "C", 0)) STORED;
CREATE INDEX servers_spec ON ops.servers (spec_hash);
