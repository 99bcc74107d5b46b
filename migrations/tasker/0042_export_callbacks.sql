-- Exports as Parquet, and a call to the orderer's address once one has ended.
ALTER TABLE ops.export_jobs DROP CONSTRAINT export_jobs_format_check;
ALTER TABLE ops.export_jobs
    ADD CONSTRAINT export_jobs_format_check CHECK (format IN ('csv', 'json', 'ndjson', 'parquet')),
    -- Where the end of the export is told.
    ADD COLUMN callback_url      text CHECK (length(callback_url) BETWEEN 1 AND 2000),
    -- NULL while the export has not ended, or nobody wants to be called.
    ADD COLUMN callback_state    text CHECK (callback_state IN ('waiting', 'delivered', 'failed')),
    ADD COLUMN callback_attempts integer NOT NULL DEFAULT 0,
    -- Why the last call failed.
    ADD COLUMN callback_error    text,
    ADD COLUMN callback_at       timestamptz;
