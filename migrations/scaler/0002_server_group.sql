-- The platform's own table: created only where the platform has not (development, tests), and never altered. A role that
-- may not create it goes on without: `run` then says that the table is missing.
DO $$
BEGIN
    IF to_regclass('"ServerGroup"') IS NULL THEN
        EXECUTE $table$
            CREATE TABLE "ServerGroup" (
                id                   text PRIMARY KEY,
                name                 text NOT NULL UNIQUE,
                description          text,
                service              text DEFAULT 'voice',
                enabled              boolean DEFAULT true,
                "lbMethod"           text DEFAULT 'round_robin',
                "maxConcurrentCalls" integer,
                priority             integer DEFAULT 1,
                "scalingEnabled"     boolean DEFAULT false,
                "minInstances"       integer,
                "maxInstances"       integer,
                "scaleUpThreshold"   double precision,
                "scaleDownThreshold" double precision,
                "cooldownSeconds"    integer,
                "scalingProvider"    text,
                "scalingConfig"      jsonb,
                "createdAt"          timestamptz DEFAULT now(),
                "updatedAt"          timestamptz DEFAULT now()
            )
        $table$;
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE WARNING 'may not create "ServerGroup"; the platform must';
END $$;
