-- The order that a rollout gave to a target: claimed before it is posted, so that a killed process leaves a trace.
CREATE TABLE ops.rollout_orders (
    tenant           text NOT NULL,
    campaign         text NOT NULL,
    target           text NOT NULL,
    state            text NOT NULL CHECK (state IN ('claimed', 'sent', 'failed')),
    attempts         integer NOT NULL DEFAULT 0,
    claimed_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- From then on the order may be given again, under the same id.
    claim_expires_at timestamptz,
    sent_at          timestamptz,
    last_error       text,
    PRIMARY KEY (tenant, campaign, target),
    CHECK ((state = 'claimed') = (claim_expires_at IS NOT NULL)),
    CHECK ((state = 'sent') = (sent_at IS NOT NULL))
);
CREATE INDEX rollout_orders_claimed ON ops.rollout_orders (tenant, campaign, claim_expires_at) WHERE state = 'claimed';
