-- The daily report of a tenant, once a day, as it was sent.
CREATE TABLE ops.sla_reports (
    tenant     text NOT NULL,
    day        date NOT NULL,
    -- The platform's row of report_runs.
    run_id     text,
    report     jsonb NOT NULL,
    html       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, day)
);
CREATE INDEX sla_reports_day ON ops.sla_reports (day);
