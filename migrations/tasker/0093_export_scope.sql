-- An order is made with the rights of whoever writes its row, and carried out with the service's, which sees every tenant's rows.
-- So a session that is set to one tenant orders that tenant's rows and no others.
CREATE OR REPLACE FUNCTION ops.export_ordered() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    scope text := NULLIF(pg_catalog.current_setting('app.tenant_id', true), '');
BEGIN
    IF NEW.tenant_id IS DISTINCT FROM scope AND scope IS NOT NULL THEN
        RAISE EXCEPTION 'a session of tenant % may order no other export than of its own rows', scope
            USING ERRCODE = 'insufficient_privilege', HINT = 'Give the order this tenant_id.';
    END IF;
    INSERT INTO ops.outbox (id, kind, payload, tenant)
    VALUES ('export:' || NEW.id, 'export.run', pg_catalog.json_build_object('id', NEW.id), "left"(NEW.tenant_id, 16))
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
