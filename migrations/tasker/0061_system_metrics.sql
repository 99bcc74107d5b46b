-- Figures of the platform over time: a partition a day, made ahead and dropped by the leader (METRICS_RETENTION). Where TimescaleDB
-- is installed, deploy/timescale/system_metrics.sql makes a hypertable of the same shape instead.
CREATE TABLE ops.system_metrics (
    time        timestamptz NOT NULL,
    metric_name text NOT NULL CHECK (length(metric_name) BETWEEN 1 AND 200),
    service     text NOT NULL DEFAULT '',
    tags        jsonb NOT NULL DEFAULT '{}'::jsonb,
    value       double precision NOT NULL
) PARTITION BY RANGE (time);
CREATE INDEX system_metrics_by_name ON ops.system_metrics (metric_name, time DESC);
CREATE INDEX system_metrics_by_service ON ops.system_metrics (service, time DESC) WHERE service <> '';
CREATE INDEX system_metrics_by_both ON ops.system_metrics (metric_name, service, time DESC);

-- What stays when the points are dropped. `bucket` is the beginning of the hour.
CREATE TABLE ops.system_metrics_hourly (
    bucket      timestamptz NOT NULL,
    metric_name text NOT NULL,
    service     text NOT NULL,
    tags        jsonb NOT NULL,
    avg         double precision NOT NULL,
    min         double precision NOT NULL,
    max         double precision NOT NULL,
    points      bigint NOT NULL CHECK (points > 0),
    PRIMARY KEY (bucket, metric_name, service, tags)
);

-- The newest point of each series of the last hour. A series that has a gap keeps the time of its last point.
CREATE VIEW ops.system_metrics_latest AS
SELECT DISTINCT ON (metric_name, service, tags) time, metric_name, service, tags, value
FROM ops.system_metrics
WHERE time > now() - interval '1 hour'
ORDER BY metric_name, service, tags, time DESC;

-- Each series over the last five minutes.
CREATE VIEW ops.system_metrics_recent AS
SELECT metric_name, service, tags, avg(value) AS avg, max(value) AS max, min(value) AS min, count(*) AS points
FROM ops.system_metrics
WHERE time > now() - interval '5 minutes'
GROUP BY metric_name, service, tags;
