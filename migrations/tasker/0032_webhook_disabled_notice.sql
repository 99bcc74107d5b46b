-- The notice of an endpoint that is disabled by itself carries what its mail shows, and nothing that only operators understand.
CREATE OR REPLACE FUNCTION ops.webhook_endpoint_disabled() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    -- What follows the path may be a secret.
    shown constant text := split_part(split_part(NEW.url, '?', 1), '#', 1);
BEGIN
    INSERT INTO ops.outbox (id, queue, kind, payload)
    VALUES (
        'webhook-disabled:' || NEW.id || ':' || (extract(epoch FROM NEW.disabled_at) * 1000000)::bigint,
        'email-queue', 'notification.send',
        json_build_object(
            'event', 'webhook.disabled', 'subject', NEW.id, 'tenant', NEW.tenant, 'severity', 4,
            'endpoint_id', NEW.id, 'url', shown,
            'failing_since', to_char(NEW.failing_since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
            'reason', CASE NEW.disabled_reason
                WHEN 'gone' THEN format('%s answered 410: it wants no more events', shown)
                WHEN 'failing' THEN format('every delivery to %s has failed for too long', shown)
                ELSE NEW.disabled_reason END,
            'at', to_char(NEW.disabled_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')))
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
