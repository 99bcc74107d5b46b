-- Several series of backups beside the one of the service's whole database, and backups that retention has removed.
ALTER TABLE ops.backups
    -- The name of a further database (BACKUP_DATABASE_<NAME>_URL); NULL for the service's own.
    ADD COLUMN target     text,
    -- The schemas that were dumped; empty for the whole database.
    ADD COLUMN schemas    text[] NOT NULL DEFAULT '{}',
    ADD COLUMN encrypted  boolean NOT NULL DEFAULT false,
    ADD COLUMN removed_at timestamptz;
