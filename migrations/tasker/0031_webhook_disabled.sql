-- An endpoint that is disabled by itself is told of, in the transaction that disables it. An operator who disables one knows.
CREATE FUNCTION ops.webhook_endpoint_disabled() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ops.outbox (id, queue, kind, payload)
    VALUES (
        'webhook-disabled:' || NEW.id || ':' || (extract(epoch FROM NEW.disabled_at) * 1000000)::bigint,
        'email-queue', 'notification.send',
        json_build_object(
            'event', 'webhook.disabled', 'subject', NEW.tenant, 'tenant', NEW.tenant, 'endpoint_id', NEW.id,
            'reason', format(
                'endpoint %s (%s) is disabled: %s. Webhooks to it stop; `webhook test %s --resend` once it answers again',
                -- What follows the path may be a secret.
                NEW.id, split_part(split_part(NEW.url, '?', 1), '#', 1),
                CASE NEW.disabled_reason
                    WHEN 'gone' THEN 'it answered 410'
                    WHEN 'failing' THEN format('it only failed since %s',
                        to_char(NEW.failing_since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
                    ELSE NEW.disabled_reason END,
                NEW.id),
            'at', to_char(NEW.disabled_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')))
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER webhook_endpoint_disabled AFTER UPDATE OF state ON ops.webhook_endpoints
    FOR EACH ROW WHEN (OLD.state = 'active' AND NEW.state = 'disabled' AND NEW.disabled_by = 'itself')
    EXECUTE FUNCTION ops.webhook_endpoint_disabled();

-- Circuits and ends of attempts are rare beside deliveries; what waits for a person is looked at by age.
CREATE INDEX webhook_endpoints_disabled ON ops.webhook_endpoints (disabled_at) WHERE state = 'disabled';
