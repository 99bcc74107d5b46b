-- Notices to others than those who run the platform: named recipients, or a tenant by its own preferences.
ALTER TABLE ops.notices
    -- Notices of different audiences never share a mail; empty: those who run the platform.
    ADD COLUMN audience   text NOT NULL DEFAULT '',
    ADD COLUMN tenant     text,
    -- NULL: as the tenant's preferences or the settings say.
    ADD COLUMN recipients text[],
    ADD COLUMN severity   integer,
    ADD COLUMN locale     text,
    -- What one notice by itself is mailed with; several, or none: the template of every notice.
    ADD COLUMN template   text,
    ADD COLUMN variables  jsonb;

-- Where notices are posted to: one row for each mail's worth of notices and address.
CREATE TABLE ops.notice_posts (
    mail_id    text NOT NULL,
    -- The channel's id; empty: ALERT_WEBHOOK_URL.
    channel    text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    posted_at  timestamptz,
    last_error text,
    PRIMARY KEY (mail_id, channel)
);
CREATE INDEX notice_posts_created ON ops.notice_posts (created_at);
