-- Exports of the platform's tables. A row is an order: whoever writes one, in whatever transaction, gets an export.
CREATE TABLE ops.export_jobs (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    -- Only this tenant's rows; NULL for everybody's.
    tenant_id       text,
    -- devices, alerts, telemetry, or schema.table out of EXPORT_TABLES.
    export_type     text NOT NULL,
    format          text NOT NULL DEFAULT 'csv' CHECK (format IN ('csv', 'json', 'ndjson')),
    filters         jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(filters) = 'object'),
    status          text NOT NULL DEFAULT 'PENDING' CHECK (status IN ('PENDING', 'PROCESSING', 'COMPLETED', 'FAILED')),
    -- The object's key.
    file_path       text,
    file_size_bytes bigint CHECK (file_size_bytes >= 0),
    row_count       bigint CHECK (row_count >= 0),
    error           text,
    created_by      text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    completed_at    timestamptz,
    expires_at      timestamptz,
    -- The claim: every write of a worker names its attempt, so that one that was taken for dead changes nothing.
    attempt         bigint NOT NULL DEFAULT 0,
    claimed_by      text,
    lease_until     timestamptz,
    CHECK (status <> 'COMPLETED' OR (file_path IS NOT NULL AND file_size_bytes IS NOT NULL AND row_count IS NOT NULL)),
    CHECK (status <> 'FAILED' OR error IS NOT NULL)
);
CREATE INDEX export_jobs_open ON ops.export_jobs (created_at) WHERE status IN ('PENDING', 'PROCESSING');
CREATE INDEX export_jobs_tenant ON ops.export_jobs (tenant_id, created_at DESC);
CREATE INDEX export_jobs_expired ON ops.export_jobs (expires_at) WHERE status IN ('COMPLETED', 'FAILED');

-- With the definer's rights: whoever may order an export need not be able to write other jobs.
CREATE FUNCTION ops.export_ordered() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    INSERT INTO ops.outbox (id, kind, payload, tenant)
    VALUES ('export:' || NEW.id, 'export.run', pg_catalog.json_build_object('id', NEW.id), "left"(NEW.tenant_id, 16))
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER export_ordered AFTER INSERT ON ops.export_jobs FOR EACH ROW EXECUTE FUNCTION ops.export_ordered();
