-- The last number that a revocation list of an issuer had: it only rises.
CREATE TABLE ops.revocation_lists (
    issuer       text PRIMARY KEY,
    number       bigint NOT NULL,
    published_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Of which certificates people were told: once before the end, and once after it.
CREATE TABLE ops.certificate_warnings (
    fingerprint text NOT NULL,
    ended       boolean NOT NULL,
    host        text NOT NULL,
    not_after   timestamptz NOT NULL,
    warned_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (fingerprint, ended)
);
CREATE INDEX certificate_warnings_end ON ops.certificate_warnings (not_after);
