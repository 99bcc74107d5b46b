-- Soft bounces of an address in a row; a delivery ends the row.
CREATE TABLE mail.soft_bounces (
    address text PRIMARY KEY CHECK (address = lower(address)),
    count   int NOT NULL CHECK (count > 0),
    last_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX soft_bounces_age ON mail.soft_bounces (last_at);

-- A report of the provider names a mail by the provider's id.
CREATE INDEX delivery_recipients_provider_id ON mail.delivery_recipients (provider_id) WHERE provider_id IS NOT NULL;
