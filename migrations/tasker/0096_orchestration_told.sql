-- Jobs of orchestration as the platform's own tables show them, and what agents are granted while their calls are under way.

ALTER TABLE ops.orchestration_jobs
    -- The row of the platform's orchestration_jobs that stands for this one.
    ADD COLUMN platform_id text,
    -- From when on the platform's tables are to be brought up to date; NULL: they are.
    ADD COLUMN tell_from   timestamptz,
    ADD COLUMN told_at     timestamptz,
    -- Why they could not be, the last time.
    ADD COLUMN tell_error  text;
-- Jobs that older versions begin are told of too; those that are over by now are not.
ALTER TABLE ops.orchestration_jobs ALTER COLUMN tell_from SET DEFAULT clock_timestamp();
CREATE INDEX orchestration_jobs_to_tell ON ops.orchestration_jobs (tell_from) WHERE tell_from IS NOT NULL;
CREATE INDEX orchestration_jobs_platform ON ops.orchestration_jobs (platform_id) WHERE platform_id IS NOT NULL;

-- What an agent may do by itself in a call that is under way: nobody else is granted the same. Gone with the agent's answer; where none
-- comes it may still be at work, and the row holds until the call's attempt would be over.
CREATE TABLE ops.orchestration_grants (
    root_id    text NOT NULL,
    agent      text NOT NULL,
    action_key text NOT NULL,
    project_id text NOT NULL,
    job_id     text NOT NULL,
    count      bigint NOT NULL CHECK (count > 0),
    granted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (root_id, agent, action_key)
);
CREATE INDEX orchestration_grants_of_project ON ops.orchestration_grants (project_id, action_key);
CREATE INDEX orchestration_grants_end ON ops.orchestration_grants (expires_at);
