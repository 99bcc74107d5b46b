-- Orchestration: jobs that call the platform's agents, what each agent was asked and did, and when schedules fire them.

-- A row a job, under the job's id in orchestration-queue. Written when a schedule fires it, else when it begins.
CREATE TABLE ops.orchestration_jobs (
    id                  text PRIMARY KEY CHECK (octet_length(id) BETWEEN 1 AND 128),
    -- The first job of a line of retries: agents are asked under its name, so that none does the same twice.
    root_id             text NOT NULL,
    -- The failed job that this one retries.
    parent_id           text,
    project_id          text NOT NULL,
    job_type            text NOT NULL CHECK (job_type IN ('batch', 'single_agent', 'github_analysis', 'retry')),
    triggered_by        text NOT NULL
                        CHECK (triggered_by IN ('cron', 'webhook', 'manual', 'api', 'system', 'retry_scheduler')),
    user_id             text,
    -- The schedule that fired it, and for which slot: one job a slot.
    schedule_id         text,
    slot                timestamptz,
    status              text NOT NULL
                        CHECK (status IN ('queued', 'running', 'completed', 'failed', 'cancelled', 'timeout')),
    -- Which of the line it is, the first being 1, and how many there may be.
    attempt_number      integer NOT NULL DEFAULT 1 CHECK (attempt_number > 0),
    max_attempts        integer NOT NULL DEFAULT 3,
    -- Of a failed one: whether another try may succeed. A refusal by an agent is not tried again by itself.
    retryable           boolean NOT NULL DEFAULT true,
    agents              text[] NOT NULL DEFAULT '{}',
    -- How often an attempt began: what an attempt writes that was overtaken by another does not count.
    begun               integer NOT NULL DEFAULT 0,
    agents_executed     integer NOT NULL DEFAULT 0,
    agents_succeeded    integer NOT NULL DEFAULT 0,
    agents_failed       integer NOT NULL DEFAULT 0,
    tasks_created       bigint NOT NULL DEFAULT 0,
    suggestions_created bigint NOT NULL DEFAULT 0,
    error_code          text,
    error_message       text,
    input               jsonb NOT NULL DEFAULT '{}',
    created_at          timestamptz NOT NULL DEFAULT now(),
    started_at          timestamptz,
    -- When the attempt under way has to be over.
    timeout_at          timestamptz,
    ended_at            timestamptz,
    duration_ms         bigint,
    CHECK ((status IN ('queued', 'running')) = (ended_at IS NULL)),
    UNIQUE (schedule_id, slot)
);
CREATE INDEX orchestration_jobs_unfinished ON ops.orchestration_jobs (project_id) WHERE ended_at IS NULL;
-- The hourly look retries a failed job once; a person may retry it as often as wanted.
CREATE UNIQUE INDEX orchestration_jobs_retried_once ON ops.orchestration_jobs (parent_id)
    WHERE triggered_by = 'retry_scheduler' AND parent_id IS NOT NULL;
CREATE INDEX orchestration_jobs_retries ON ops.orchestration_jobs (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX orchestration_jobs_line ON ops.orchestration_jobs (root_id);
CREATE INDEX orchestration_jobs_newest ON ops.orchestration_jobs (created_at DESC, id);
CREATE INDEX orchestration_jobs_of_schedule ON ops.orchestration_jobs (schedule_id, created_at DESC)
    WHERE schedule_id IS NOT NULL;
CREATE INDEX orchestration_jobs_failed ON ops.orchestration_jobs (ended_at) WHERE status IN ('failed', 'timeout');
CREATE INDEX orchestration_jobs_ended ON ops.orchestration_jobs (ended_at) WHERE ended_at IS NOT NULL;

-- What one agent was asked within a line of retries. One that succeeded is never asked again.
CREATE TABLE ops.orchestration_agent_runs (
    root_id             text NOT NULL,
    agent               text NOT NULL,
    state               text NOT NULL CHECK (state IN ('running', 'succeeded', 'failed', 'skipped')),
    -- The job that asked last, at which of its replays, and how often it was asked in all.
    job_id              text NOT NULL,
    replays             integer NOT NULL DEFAULT 0,
    calls               integer NOT NULL DEFAULT 1,
    -- Of a failed one: the agent said no, or what it said cannot be read.
    final               boolean NOT NULL DEFAULT false,
    did_nothing         boolean NOT NULL DEFAULT false,
    tasks_created       bigint NOT NULL DEFAULT 0,
    suggestions_created bigint NOT NULL DEFAULT 0,
    http_status         integer,
    error               text,
    started_at          timestamptz NOT NULL DEFAULT now(),
    ended_at            timestamptz,
    PRIMARY KEY (root_id, agent)
);
CREATE INDEX orchestration_agent_runs_age ON ops.orchestration_agent_runs (started_at);

-- An agent that asked for time is left alone by every job.
CREATE TABLE ops.orchestration_agent_rests (
    agent         text PRIMARY KEY,
    resting_until timestamptz NOT NULL,
    reason        text
);

CREATE TABLE ops.orchestration_execution_logs (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id       text NOT NULL,
    project_id   text NOT NULL,
    -- NULL: of the job as a whole.
    agent        text,
    -- The attempt of the job.
    attempt      integer NOT NULL,
    phase        text NOT NULL CHECK (phase IN ('analyze', 'decide', 'execute', 'verify', 'complete')),
    status       text NOT NULL CHECK (status IN ('running', 'completed', 'failed', 'skipped', 'do_nothing')),
    message      text,
    detail       jsonb NOT NULL DEFAULT '{}',
    started_at   timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    duration_ms  bigint
);
CREATE INDEX orchestration_execution_logs_job ON ops.orchestration_execution_logs (job_id, id);
CREATE INDEX orchestration_execution_logs_age ON ops.orchestration_execution_logs (started_at);

-- What agents did by themselves: what the limits of autonomous_action_config count.
CREATE TABLE ops.orchestration_actions (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id text NOT NULL,
    agent      text NOT NULL,
    action_key text NOT NULL,
    count      bigint NOT NULL CHECK (count > 0),
    job_id     text NOT NULL,
    done_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX orchestration_actions_of_project ON ops.orchestration_actions (project_id, action_key, done_at);
CREATE INDEX orchestration_actions_age ON ops.orchestration_actions (done_at);

-- Schedules and limits, where the platform has no table of the same name. Its own are read first, and have these columns.
CREATE TABLE ops.agent_orchestration_schedules (
    id                           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id                   text NOT NULL,
    -- NULL: a batch of every agent.
    agent_slug                   text,
    is_enabled                   boolean NOT NULL DEFAULT true,
    schedule_type                text NOT NULL DEFAULT 'daily'
        CHECK (schedule_type IN ('hourly', 'every_4h', 'every_8h', 'daily', 'weekly', 'custom')),
    cron_expression              text,
    timezone                     text NOT NULL DEFAULT 'UTC',
    run_after_time               time,
    run_before_time              time,
    run_on_days                  integer[] NOT NULL DEFAULT '{0,1,2,3,4,5,6}',
    min_interval_minutes         integer NOT NULL DEFAULT 60,
    max_runs_per_day             integer NOT NULL DEFAULT 24,
    cooldown_after_error_minutes integer NOT NULL DEFAULT 30,
    priority                     integer NOT NULL DEFAULT 5 CHECK (priority BETWEEN 1 AND 10),
    allow_concurrent             boolean NOT NULL DEFAULT false,
    last_run_at                  timestamptz,
    last_success_at              timestamptz,
    last_failure_at              timestamptz,
    consecutive_failures         integer NOT NULL DEFAULT 0,
    total_runs                   integer NOT NULL DEFAULT 0,
    total_successes              integer NOT NULL DEFAULT 0
);

CREATE TABLE ops.autonomous_action_config (
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id       text NOT NULL,
    action_key       text NOT NULL,
    -- NULL: of every agent.
    agent_slug       text,
    is_enabled       boolean NOT NULL DEFAULT false,
    max_per_day      integer NOT NULL DEFAULT 10,
    max_per_hour     integer NOT NULL DEFAULT 3,
    cooldown_minutes integer NOT NULL DEFAULT 15,
    times_used_today integer NOT NULL DEFAULT 0,
    times_used_total integer NOT NULL DEFAULT 0,
    last_used_at     timestamptz,
    last_reset_at    timestamptz
);
CREATE UNIQUE INDEX autonomous_action_config_once
    ON ops.autonomous_action_config (project_id, action_key, COALESCE(agent_slug, ''));

-- Where each schedule stands, by its id as text, and why it does not fire at present.
CREATE TABLE ops.orchestration_schedule_state (
    schedule_id  text PRIMARY KEY,
    -- What `since` belongs to: a schedule whose times were changed, or that was switched on, makes up for nothing before that.
    definition   text NOT NULL,
    since        timestamptz NOT NULL DEFAULT now(),
    last_slot    timestamptz,
    last_fired_at timestamptz,
    last_job_id  text,
    last_success_at timestamptz,
    last_failure_at timestamptz,
    fired_total  bigint NOT NULL DEFAULT 0,
    -- fired, waiting, off, misconfigured; and the reason in words.
    decision     text NOT NULL DEFAULT 'waiting' CHECK (decision IN ('fired', 'waiting', 'off', 'misconfigured')),
    reason       text NOT NULL DEFAULT '',
    -- When it may fire next, where that is known.
    next_at      timestamptz,
    evaluated_at timestamptz NOT NULL DEFAULT now()
);
