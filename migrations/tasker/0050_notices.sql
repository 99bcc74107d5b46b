-- What people are told about the platform. A notice is told once: alone, or with the others of its event and subject that came
-- while mail about them rested.
CREATE TABLE ops.notices (
    -- The id of the job that brought it.
    id          text PRIMARY KEY,
    event       text NOT NULL,
    -- The server group, database or service it is about; empty where it is about none.
    subject     text NOT NULL,
    server      text,
    reason      text NOT NULL,
    at          timestamptz NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The delivery that tells it; NULL while it is held back.
    mail_id     text,
    told_at     timestamptz,
    CHECK (told_at IS NULL OR mail_id IS NOT NULL)
);
CREATE INDEX notices_held ON ops.notices (event, subject) WHERE mail_id IS NULL;
CREATE INDEX notices_of_mail ON ops.notices (mail_id) WHERE mail_id IS NOT NULL;
CREATE INDEX notices_received ON ops.notices (received_at);

-- From when on the next mail about an event of a subject may go.
CREATE TABLE ops.notice_throttles (
    event   text NOT NULL,
    subject text NOT NULL,
    open_at timestamptz NOT NULL,
    PRIMARY KEY (event, subject)
);
CREATE INDEX notice_throttles_open ON ops.notice_throttles (open_at);
