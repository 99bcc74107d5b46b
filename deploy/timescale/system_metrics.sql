-- UNTESTED: the TimescaleDB form of ops.system_metrics. It was written by TimescaleDB's documented interface and never run by this
-- repository's tests, since no packaged extension with compression and continuous aggregates can be installed there. Try it on a
-- copy first.
--
-- For a database in which TimescaleDB 2.13 or newer (Community edition) is installed, run once by the owner of the schema ops, with
-- every voiceai-tasker stopped, after `voiceai-tasker migrate`:
--     psql -v ON_ERROR_STOP=1 --single-transaction -f system_metrics.sql "$DATABASE_URL"
-- It replaces the partitioned table by a hypertable of the same columns and keeps what was collected. voiceai-tasker then only writes:
-- where ops.system_metrics is no partitioned table and ops.system_metrics_hourly no table, it looks after neither. METRICS_RETENTION
-- and METRICS_HOURLY_RETENTION then do nothing: the policies below say how long things are kept.
CREATE EXTENSION IF NOT EXISTS timescaledb;

DROP VIEW ops.system_metrics_latest, ops.system_metrics_recent;
ALTER TABLE ops.system_metrics RENAME TO system_metrics_before;
CREATE TABLE ops.system_metrics (
    time        timestamptz NOT NULL,
    metric_name text NOT NULL CHECK (length(metric_name) BETWEEN 1 AND 200),
    service     text NOT NULL DEFAULT '',
    tags        jsonb NOT NULL DEFAULT '{}'::jsonb,
    value       double precision NOT NULL
);
SELECT create_hypertable('ops.system_metrics', by_range('time', interval '1 hour'));
INSERT INTO ops.system_metrics SELECT * FROM ops.system_metrics_before;
DROP TABLE ops.system_metrics_before;
-- Named anew: the names of the partitioned indexes went with their table.
CREATE INDEX system_metrics_by_name ON ops.system_metrics (metric_name, time DESC);
CREATE INDEX system_metrics_by_service ON ops.system_metrics (service, time DESC) WHERE service <> '';
CREATE INDEX system_metrics_by_both ON ops.system_metrics (metric_name, service, time DESC);

ALTER TABLE ops.system_metrics SET (
    timescaledb.compress, timescaledb.compress_segmentby = 'metric_name, service', timescaledb.compress_orderby = 'time DESC'
);
SELECT add_compression_policy('ops.system_metrics', interval '1 hour');
SELECT add_retention_policy('ops.system_metrics', interval '7 days');

-- What was summed up so far stays readable beside the aggregate.
ALTER TABLE ops.system_metrics_hourly RENAME TO system_metrics_hourly_before;
CREATE MATERIALIZED VIEW ops.system_metrics_hourly WITH (timescaledb.continuous) AS
SELECT time_bucket('1 hour', time) AS bucket, metric_name, service, tags,
       avg(value) AS avg, min(value) AS min, max(value) AS max, count(*) AS points
FROM ops.system_metrics
GROUP BY bucket, metric_name, service, tags
WITH NO DATA;
SELECT add_continuous_aggregate_policy('ops.system_metrics_hourly',
    start_offset => interval '3 hours', end_offset => interval '1 hour', schedule_interval => interval '1 hour');
SELECT add_retention_policy('ops.system_metrics_hourly', interval '365 days');

CREATE VIEW ops.system_metrics_latest AS
SELECT DISTINCT ON (metric_name, service, tags) time, metric_name, service, tags, value
FROM ops.system_metrics
WHERE time > now() - interval '1 hour'
ORDER BY metric_name, service, tags, time DESC;

CREATE VIEW ops.system_metrics_recent AS
SELECT metric_name, service, tags, avg(value) AS avg, max(value) AS max, min(value) AS min, count(*) AS points
FROM ops.system_metrics
WHERE time > now() - interval '5 minutes'
GROUP BY metric_name, service, tags;
